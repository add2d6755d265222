package swarm

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
)

// arrived is a blob on its way to this node, as a Reader of the pieces that are
// complete. What is not here yet is an error, not a wait: whoever asks has other
// sources.
type arrived struct{ b *chunker.Blob }

// openArrived opens a blob that this node downloads, without prolonging that.
func (n *Node) openArrived(d digest.Digest) (Reader, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	dl := n.downloads[d]
	if dl == nil || dl.failed() {
		return nil, fmt.Errorf("open %s: %w", d, ErrNotFound)
	}
	b, err := n.cfg.Store.Acquire(d, dl.id.Geometry.Size) // the download has it open
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	return arrived{b}, nil
}

func (a arrived) ReadAt(p []byte, off int64) (int, error) {
	if g := a.b.Geometry(); off >= 0 && len(p) > 0 && off < g.Size {
		last := g.PieceAt(min(off+int64(len(p)), g.Size) - 1)
		for i := g.PieceAt(off); i <= last; i++ {
			if !a.b.Has(i) {
				return 0, fmt.Errorf("piece %d of %s is not here: %w", i, a.b.Digest(), ErrNotFound)
			}
		}
	}
	return a.b.ReadAt(p, off)
}

func (a arrived) Size() int64  { return a.b.Geometry().Size }
func (a arrived) Close() error { a.b.Release(); return nil }
