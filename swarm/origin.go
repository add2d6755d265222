package swarm

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
)

// Errors that cross the boundary between the swarm and what feeds it. They
// are wrapped; test with errors.Is.
var (
	// ErrNoRange says that a registry ignores Range requests for this blob:
	// the caller may only open the whole of it, once (one streaming fetcher).
	ErrNoRange = errors.New("registry ignores range requests")
	// ErrNotFound says that the content does not exist where it was looked
	// for.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable says that the source cannot answer now (connection
	// refused, 5xx, rate limit, time-out); another source may.
	ErrUnavailable = errors.New("unavailable")
	// ErrDenied says that the registry refuses the credentials that it was
	// shown. Those of another caller may do.
	ErrDenied = errors.New("denied by the registry")
)

// Origin is where one blob's bytes come from when no node of the cluster has
// them: the upstream registry, with the credentials of the node that asks.
// Implementations are safe for concurrent use.
type Origin interface {
	// Open streams n bytes of the blob from offset off. The reader yields
	// exactly n bytes, or fails; retries and resumption are its business.
	// When the registry ignores ranges and [off, off+n) is not the whole
	// blob, the error wraps ErrNoRange; when it refuses the credentials,
	// ErrDenied. Closing the reader, or cancelling ctx, stops the transfer.
	Open(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Reader is an open whole blob on this node.
type Reader interface {
	io.ReaderAt
	io.Closer
	// Size is the blob's length in bytes.
	Size() int64
}

// Content is a place on this node that keeps whole, verified blobs, for
// instance containerd's content store. Implementations are safe for
// concurrent use.
type Content interface {
	// Open returns the blob, or an error wrapping ErrNotFound.
	Open(ctx context.Context, d digest.Digest) (Reader, error)
	// Keeps says that the blob is there to stay, until its image goes.
	Keeps(d digest.Digest) bool
}

// Held is one whole blob that this node can serve to others.
type Held struct {
	Digest digest.Digest `json:"digest"`
	// Size in bytes.
	Size int64 `json:"size"`
}

// Descriptor is what a tag or digest resolves to.
type Descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	// Size in bytes.
	Size int64 `json:"size"`
}

// Source says where bytes came from, for logs and metrics.
type Source string

// The sources. Every byte that a node serves has one.
const (
	SourceLocal  Source = "local"  // this node's piece store or containerd's content store
	SourcePeers  Source = "peers"  // other nodes, by lease or by swarm
	SourceOrigin Source = "origin" // the upstream registry
)

// Stats counts, per source, the bytes that one download has brought in so far.
type Stats struct {
	Origin, Peers, Local int64
}

// Download is one blob on its way to this node, or already here. The methods
// are safe for concurrent use. Every Download must be closed.
type Download interface {
	// NewReader streams n bytes from off, in order, as they are verified; it
	// never yields a byte whose piece digest was not checked, and withholds
	// the end of the blob until the digest of the whole is right. It fails
	// when the download fails or ctx ends.
	NewReader(ctx context.Context, off, n int64) io.ReadCloser
	// Wait blocks until the blob is whole and verified, or has failed.
	Wait(ctx context.Context) error
	// Stats may be called at any time.
	Stats() Stats
	// Close gives the download up. It goes on while others hold it, and for
	// a moment after, since clients that lose a connection come back.
	Close()
}

// Request asks for one blob.
type Request struct {
	Digest digest.Digest
	// Size in bytes, as the manifest names it; > 0.
	Size int64
	// Origin serves what no node has; nil means peers only.
	Origin Origin
	// After are blobs that the client needs before this one. As long as the node
	// fetches one of them whose last piece nobody has a lease on yet, it leaves the
	// sources to it.
	After []digest.Digest
	// Registry and Repository are named in logs only.
	Registry, Repository string
}
