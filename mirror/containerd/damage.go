package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

// Damage is a blob that containerd's metadata name and its store does not have
// whole.
type Damage struct {
	Digest digest.Digest
	Size   int64 // by the metadata
	Gone   bool  // rather than of another size
}

// FindDamage compares containerd's metadata with its files once. It needs to see
// the files.
func FindDamage(ctx context.Context, c Config) (_ []Damage, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	d, err := newDaemon(c.socket())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.conn.Close()) }()
	root := c.Root
	if root == "" {
		if root, err = d.root(ctx); err != nil {
			return nil, err
		}
	}
	files, err := openFiles(root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, files.close()) }()
	namespaces, err := d.listNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	found := map[key]Damage{}
	for _, ns := range namespaces {
		err := d.walk(ctx, ns, func(k key, size int64, _ []key) {
			looked := files.check(k, size)
			switch {
			case errors.Is(looked, errDamaged):
				found[k] = Damage{Digest: k.digest(), Size: size}
			case errors.Is(looked, fs.ErrNotExist):
				// It may lie elsewhere, or have been collected meanwhile.
				still, err := d.info(ctx, ns, k)
				var last [1]byte
				if err == nil && still > 0 && errors.Is(d.read(ctx, ns, k, last[:], size-1), swarm.ErrNotFound) {
					found[k] = Damage{Digest: k.digest(), Size: size, Gone: true}
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	var all []Damage
	for _, one := range found {
		all = append(all, one)
	}
	return all, nil
}

func (d Damage) String() string {
	if d.Gone {
		return fmt.Sprintf("%s: the file is gone", d.Digest)
	}
	return fmt.Sprintf("%s: the file has not the %d bytes that it should have", d.Digest, d.Size)
}
