package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/mirror"
	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// registries is the client of the origin registries as the mirror wants it:
// the mirror says which errors it tells apart, and imports no client.
type registries struct{ client *upstream.Client }

var _ mirror.Upstream = registries{}

// Head implements mirror.Manifests.
func (r registries) Head(ctx context.Context, repo mirror.Repository, ref string) (swarm.Descriptor, error) {
	d, err := r.client.Head(ctx, upstream.Repository(repo), ref)
	return d, translate(err)
}

// Manifest implements mirror.Manifests.
func (r registries) Manifest(ctx context.Context, repo mirror.Repository, ref string) (swarm.Descriptor, []byte, error) {
	d, p, err := r.client.Manifest(ctx, upstream.Repository(repo), ref)
	return d, p, translate(err)
}

// Size implements mirror.Blobs.
func (r registries) Size(ctx context.Context, repo mirror.Repository, d digest.Digest) (int64, error) {
	n, err := r.client.Blob(upstream.Repository(repo), d, 0).Size(ctx)
	return n, translate(err)
}

// Origin implements mirror.Blobs.
func (r registries) Origin(repo mirror.Repository, d digest.Digest, size int64) swarm.Origin {
	return r.client.Blob(upstream.Repository(repo), d, size)
}

// translate marks the client's refusals as the mirror's. The other kinds are
// package swarm's, which both know.
func translate(err error) error {
	if errors.Is(err, upstream.ErrDenied) {
		return fmt.Errorf("%w: %w", mirror.ErrDenied, err)
	}
	return err
}
