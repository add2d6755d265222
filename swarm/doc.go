// Package swarm brings blobs to this node together with the other nodes of the
// cluster, so that about one copy of each leaves the registry whatever the
// number of nodes that want it.
//
// # A download
//
// [Node.Fetch] joins the swarm of a blob, or the download of it that this node
// already runs. A blob's torrent is a pure function of cluster id, digest and
// size (package chunker), so nodes meet without exchanging metainfo. Each
// download keeps one session with the blob's tracker (package tracker), which
// leases to it runs of pieces that no puller has, from a source: a node that
// holds the whole blob, or else the [Origin]. Whoever takes a piece from a
// source hashes it and publishes the sum before the piece; the other pullers
// want it from then on and trade it through BitTorrent (package engine),
// verifying it against that sum.
//
// Blobs below 512 KiB, and manifests, have no torrent: one node asks the origin,
// the others fetch from nodes that have the content.
//
// # A part of a blob
//
// [Node.Range] brings in a part and not the rest: from a node that holds the blob or
// pulls it and has come so far, else in spans of [SpanLength] bytes. Of a span the
// nodes agree upon a digest as they agree upon what a tag points to; the one that
// has to say takes it from the origin, and for the others it is small content.
//
// # What is trusted
//
// A sum is vouched for by an authenticated node, not by the blob's digest. So
// a reader gets the verified prefix as it grows, but never the end of a blob
// before the digest of the whole is right. If it is wrong, everything is
// thrown away and taken from the origin alone; comparing the sums shows who
// vouched for wrong bytes, and that node is not believed for ten minutes.
//
// Of a part there is no such proof, and a wrong span may reach readers, which have
// digests of their own for what they read; what a span is has to be said again after
// ten minutes, and a node that the registry contradicts is not believed either.
//
// # When things go wrong
//
// No wait is unbounded. A lease without progress moves to another node. A
// tracker that does not answer is replaced by the next in rank, and told what
// it needs to know. A download that gets no bytes although it could, or in
// whose swarm nothing moves, helps itself from the origin after
// Config.Patience, counted in shoal_swarm_fallbacks_total by reason. If there
// is no source at all it fails, readers get the error, and containerd goes to
// its next host.
//
// # Control plane
//
// Nodes speak HTTP over mutual TLS: HTTP/2 for messages and tracker streams,
// HTTP/1.1 for blobs. A request acts in the name of the node in its
// certificate. The paths are in control.go; every body is bounded and
// checked.
package swarm
