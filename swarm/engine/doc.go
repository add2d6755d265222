// Package engine trades pieces between the nodes that are pulling the same
// blob: anacrolix/torrent, wrapped and tuned for a data centre.
//
// An [Engine] is this node's BitTorrent client; a [Torrent] is one blob that
// is in flight, backed by a chunker.Blob. Pieces come into the swarm from
// outside: whoever takes one from a source writes it into its blob and calls
// [Torrent.Have]; everybody else learns its sum from the tracker, sets it with
// Blob.Expect, and calls [Torrent.Want]. A piece is never wanted before its
// sum is known, so nothing unverifiable is downloaded.
//
// What the library does by itself is turned off: DHT, trackers, peer exchange,
// metadata exchange, hole punching, µTP, WebTorrent, web seeds, port
// forwarding, encryption of its own. The connections are the node's mutual TLS
// ones; peers come from the tracker. Readers of the library are not used:
// whoever reads waits on the blob's pieces.
//
// # The library
//
// Version 1.61.0 of the library is worked around in six places, each of which
// says how: messages that make it panic ([gate]), a lost wake-up that leaves a
// connection idle with work to do (nudgeName), request queues that shrink at
// every piece a peer announces (link.hold), requests chosen from all that is
// wanted ([picker]), completion set without asking (Torrent.update), and a panic
// at a read that fails while its torrent is dropped (piece.ReadAt). See there
// before moving to another version.
//
// # Tuning
//
// The library's defaults are made for the Internet: with them the last of 7
// nodes on equal links took 2.7 times as long as the links need. See
// [defaultTuning] for the values and why. Together with leases for first
// copies BenchmarkSwarm measures 1.02 to 1.03 for 8 nodes.
//
// # Peers
//
// [Torrent.AddPeers] may be called with the same peers again and again. Of two
// nodes that learn of each other the one with the higher peer id dials, since
// that is the direction that the library keeps when both do; the other one
// does so if nothing comes within [dialGrace]. Failed dials, and connections
// that were lost, are tried again with back-off and forgotten after
// [maxDials] failures, until somebody names the peer again. A node that has and
// wants nothing yet does not dial: it would have nothing to say.
//
// A connection ends when the peer's host vanishes (TCP keep-alive and user
// timeout, 30 s; the library alone would wait 150 s), when the peer owes an
// answer for 30 s, or when it sends what no node of ours would: every message
// passes [gate] before the library sees it, which would panic at some.
//
// # Wrong bytes
//
// A piece that contradicts its sum is discarded and fetched again, and the node
// that sent it, or of several the one with the worst record, is left out of
// this blob's swarm for a while ([cutMin], doubling). Whoever publishes wrong
// sums can thus get honest nodes left out, briefly, until the piece has failed
// [maxFailures] times: then it is not wanted any more and [Events.PieceBad]
// says so. The library's own way, to ban the sender's IP address for the whole
// client and for ever, is not used: it never sees an address.
//
// Nodes are named as they call themselves on the wire. TLS keeps strangers
// out, but a node of the cluster can take another's name here, so the names are
// good for logs and for leaving somebody out, not for a verdict.
package engine
