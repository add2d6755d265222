// Package engine trades pieces between the nodes that are pulling the same
// blob, over BitTorrent.
//
// An [Engine] is this node's end of the wire; a [Torrent] is one blob that is
// in flight, backed by a chunker.Blob. Pieces come into the swarm from
// outside: whoever takes one from a source writes it into its blob and calls
// [Torrent.Have]; everybody else learns its sum from the tracker, sets it with
// Blob.Expect, and calls [Torrent.Want]. A piece is never wanted before its
// sum is known, so nothing unverifiable is downloaded.
//
// # The wire
//
// BEP 3 with the fast extension (BEP 6), on the connections of the node, which
// are mutual TLS where the cluster is. There is no DHT, tracker protocol, peer
// exchange or metadata exchange: peers come from Shoal's tracker, and a blob's
// identity from its digest. Nobody is choked: what a node has it gives to whoever
// may connect. Message types and the handshake's extension bits are those of
// anacrolix/torrent's peer_protocol; that library's client trades with this
// engine in the tests. Why not to use the client itself is in
// docs/adr/0006-own-wire-engine.md.
//
// A connection has two goroutines. One reads: it receives a piece into memory,
// verifies it and stores it in one write ([Torrent] asks for a piece of one peer
// at a time, all its chunks in order, so a wrong one has one sender). The other
// writes: requests, news of pieces, and the chunks that were requested of this
// node, in the order of the requests. At most [picker.Slots] connections of the
// node send chunks at a time, one piece each in turn, so that a piece is soon whole
// somewhere and can be passed on. Which piece to ask of whom, and whose turn it
// is, is decided by package picker.
//
// # Peers
//
// [Torrent.AddPeers] may be called with the same peers again and again; who hears
// of a peer dials at once. Should two nodes end up with two connections, both
// keep the one that the node with the higher peer id has dialled. Failed
// dials, and connections that were lost, are tried again with back-off and
// forgotten after [maxDials] failures, until somebody names the peer again. A
// node that has and wants nothing yet does not dial: it would have nothing to
// say.
//
// A connection ends when the peer's host vanishes (TCP keep-alive and user
// timeout, 30 s), when the peer owes an answer for 30 s, or when it sends what
// makes no sense: every message passes [gate] first.
//
// # Wrong bytes
//
// A piece that contradicts its sum is discarded and asked of another peer; its
// sender is left out of this blob's swarm for a while ([cutMin], doubling).
// Whoever publishes wrong sums can thus get honest nodes left out, briefly, until
// the piece has failed [maxFailures] times: then it is not wanted any more and
// [Events.PieceBad] says so.
//
// Nodes are named as they call themselves on the wire. TLS keeps strangers
// out, but a node of the cluster can take another's name here, so the names are
// good for logs and for leaving somebody out, not for a verdict.
package engine
