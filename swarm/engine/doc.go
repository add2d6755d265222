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
// µTP, WebTorrent, web seeds, port forwarding, encryption of its own. The
// connections are the node's mutual TLS ones; peers come from the tracker.
//
// # Tuning
//
// Measured against the library's defaults, which are made for the Internet
// (last node of 7 on equal links, one seed, over size ÷ link speed: 2.7):
// MaxUnverifiedBytes is off, since its window over the rarest pieces leaves
// out those that neighbours hold; requests outstanding per peer are capped at
// [requestDepth], since hundreds of them make a queue at the uploader that
// arrives in map order; every wanted piece has the same priority, since a
// reader's priorities override rarity; dials are not rate-limited. Together
// with leases for first copies that measured 1.01 to 1.04.
//
// # Bad peers
//
// The library bans the IP address of a peer that sent a bad piece, for the
// whole client and for ever. Nodes behind one address, and honest nodes that
// were told a wrong sum, would suffer, so every connection shows the library
// an address of its own: a ban costs one connection. A piece that fails
// [maxFailures] times is not wanted any more and is reported.
package engine
