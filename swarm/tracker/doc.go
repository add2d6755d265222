// Package tracker is the rendezvous of one blob's swarm: it knows who holds
// the blob, who is pulling it and which pieces the pullers have, and decides
// who brings which piece into the cluster, from where.
//
// # Which node tracks what
//
// Every node runs a [Tracker]. The tracker of a digest is the live member with
// the highest rendezvous weight for it; the second stands by and hears the
// same inventory. All state here is soft: a node that loses its tracker joins
// the next one and tells it what it has, and nothing is lost but a moment.
//
// What a registry said of a tag is the exception: while the registry is away nobody
// can say it again. So trackers hand that on to those that come after them, with its
// age ([Tracker.References], [Tracker.Adopt]).
//
// # Leases
//
// A piece that no puller has yet is brought in by exactly one of them, under a
// lease: a short run of pieces and a source. The source is a node that holds
// the whole blob, or else the origin registry; so about one copy leaves the
// registry whatever the number of nodes. Everything some puller has is traded
// between the pullers by BitTorrent, and needs no decision here. Leases are
// handed out in the order of the blob, so that its beginning is whole early
// and can go to the client, and are sized to about a second of the speed that
// the puller has shown. The next one is granted a little before that is over. A
// lease without progress for [Params.LeaseTimeout] is revoked and given to
// another; sooner if nothing else is left to lease and all wait for it.
//
// Leases were chosen over letting all pullers download from one seed inside
// the swarm: that measured 2.7 to 5 times the physical bound, leases 1.01 to
// 1.04 (docs/adr/0001).
//
// # Small content
//
// Manifests and blobs below two pieces have no torrent. One puller gets them
// from the origin; the others wait for it and then fetch from the nodes that
// have the content, a few at a time each, every node that finishes becoming a
// source: the number of copies doubles with each round.
//
// # Purity
//
// [Large] and [Small] are state machines without clock, goroutine, lock or
// network: an event and the time go in, messages come out. [Tracker] owns the
// locks, the sessions and the clock.
//
// # Wire
//
// A puller keeps one stream per blob to the tracker: newline-delimited JSON,
// [Up] towards the tracker, [Down] towards the puller. A line is at most
// [MaxLine] bytes; [Version] is in the first one. Indices, counts and names
// are checked against the blob's geometry and the caller's authenticated
// identity before they reach a state machine; a message that fails ends the
// session.
package tracker
