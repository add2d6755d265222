// Package chunker owns the geometry of pieces, their verification, and the
// piece store: the disk cache through which every blob passes on its way to
// containerd.
//
// # Pieces and identity
//
// A blob is cut by [GeometryOf] as a pure function of its size, and named in
// the swarm by [Identity] as a pure function of cluster, digest and size.
// Nodes agree on both without a message.
//
// # Verification
//
// There are two layers of it. A piece is complete once its bytes match the
// [Sum] that a source's reader computed and published; that keeps a corrupt or
// lying peer from costing more than a piece. The blob is complete once the
// sha256 of the whole, computed by [Blob.VerifyWhole] over the prefix as it
// grows, matches the digest it was asked for by. Readers ([Blob.NewReader])
// see complete pieces only, and the last [TailLength] bytes only of a complete
// blob: a client can never finish reading a wrong blob.
//
// # Store
//
// A [Store] keeps one preallocated file per blob, so that a full disk shows
// before the first byte and not in the middle, and beside it the sums of the
// complete pieces, each recorded after its data was written. Nothing is
// synced on the data path: after a crash, [Store.Acquire] keeps the pieces
// whose bytes still hash to their recorded sums and forgets the rest, and
// whole blobs are hashed again before their first use. What is verified on the
// way in need not be durable, only detectable, and an fsync per piece would
// cost more than the network. Sums that turned out to vouch for a wrong blob are
// made void on disk before anybody hears of it, so that they are not believed
// after a crash.
//
// The store holds at most Options.Capacity bytes and leaves Options.Reserve
// free on its file system. Blobs that nobody has pinned are evicted, the
// longest unused first; after a restart, the longest unwritten. A pinned blob is
// never touched, and a blob that would not fit even then evicts nothing.
//
// On disk, below Options.Dir:
//
//	lock               held by the process that owns the store
//	partial/<hex>.data the blob's bytes, preallocated
//	partial/<hex>.sums a header and one record per piece, see sums.go
//	complete/<hex>     a whole verified blob
//
// <hex> is the sha256 and nothing else, so no input reaches a path. Other files
// in partial and complete are removed when the store is opened. [Remove] leaves
// nothing of it.
package chunker
