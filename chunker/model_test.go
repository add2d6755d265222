package chunker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

// storeModel drives a store at random, with restarts, and knows what must be
// true of it.
type storeModel struct {
	t     *testing.T
	dir   string
	s     *Store
	cap   int64
	blobs []*modelBlob
	// told is what OnChange has said since the store was opened, on top of
	// what was there then.
	told map[digest.Digest]int64
}

type modelBlob struct {
	data []byte
	d    digest.Digest
	pins []*Blob
	have map[int]bool // of the blob while it is pinned
}

func (m *storeModel) open(t *rapid.T) {
	s, err := Open(Options{Dir: m.dir, Capacity: m.cap, OnChange: func(d digest.Digest, size int64, present bool) {
		if _, was := m.told[d]; was == present {
			t.Fatalf("OnChange says present=%v of %s twice", present, d)
		}
		if present {
			m.told[d] = size
		} else {
			delete(m.told, d)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.told = s, map[digest.Digest]int64{}
	for _, e := range s.Complete() {
		m.told[e.Digest] = e.Size
	}
}

func (m *storeModel) pick(t *rapid.T) *modelBlob {
	return m.blobs[rapid.IntRange(0, len(m.blobs)-1).Draw(t, "blob")]
}

// pinned skips the action if the drawn blob is not pinned.
func (m *storeModel) pinned(t *rapid.T) (*modelBlob, *Blob) {
	x := m.pick(t)
	if len(x.pins) == 0 {
		t.Skip("not pinned")
	}
	return x, x.pins[0]
}

func (m *storeModel) room() (pinned int64) {
	for _, x := range m.blobs {
		if len(x.pins) > 0 {
			pinned += int64(len(x.data))
		}
	}
	return pinned
}

func (m *storeModel) Acquire(t *rapid.T) {
	x := m.pick(t)
	// One that is in the store needs no room.
	m.s.mu.Lock()
	_, here := m.s.blobs[x.d]
	m.s.mu.Unlock()
	b, err := m.s.Acquire(x.d, int64(len(x.data)))
	fits := here || m.room()+int64(len(x.data)) <= m.cap
	var full *NoSpaceError
	if (err == nil) != fits || err != nil && !errors.As(err, &full) {
		t.Fatalf("acquire %d bytes with %d of %d pinned: %v", len(x.data), m.room(), m.cap, err)
	}
	if err != nil {
		return
	}
	if len(x.pins) == 0 { // what is kept must be right; checked by Check
		x.have = map[int]bool{}
		for i := range b.Have().All() {
			x.have[i] = true
		}
	} else if x.pins[0] != b {
		t.Fatal("one blob, two states")
	}
	x.pins = append(x.pins, b)
}

func (m *storeModel) Get(t *rapid.T) {
	x := m.pick(t)
	b, ok := m.s.Get(x.d)
	if _, told := m.told[x.d]; ok != told {
		t.Fatalf("Get says %v, OnChange said %v", ok, told)
	}
	if !ok {
		return
	}
	p, err := io.ReadAll(b.NewReader(context.Background(), 0, int64(len(x.data)), true))
	if err != nil || !bytes.Equal(p, x.data) {
		t.Fatalf("a whole blob reads wrong: %d bytes, %v", len(p), err)
	}
	b.Release() // the reader's
	b.Release()
}

func (m *storeModel) Release(t *rapid.T) {
	x, b := m.pinned(t)
	x.pins = x.pins[1:]
	b.Release()
}

func (m *storeModel) Drop(t *rapid.T) { m.s.Drop(m.pick(t).d) }

func (m *storeModel) WritePiece(t *rapid.T) {
	x, b := m.pinned(t)
	i := rapid.IntRange(0, b.Geometry().NumPieces()-1).Draw(t, "piece")
	off, n := b.Geometry().Piece(i)
	if _, err := b.WritePiece(i, x.data[off:off+n]); err != nil {
		t.Fatal(err)
	}
	x.have[i] = true
}

func (m *storeModel) TakeWrongPiece(t *rapid.T) {
	x, b := m.pinned(t)
	i := rapid.IntRange(0, b.Geometry().NumPieces()-1).Draw(t, "piece")
	_, n := b.Geometry().Piece(i)
	_, known := b.Sum(i)
	fresh, err := b.TakePiece(i, make([]byte, n))
	switch {
	case fresh:
		t.Fatal("taken")
	case b.Complete() || x.have[i]:
		if err != nil {
			t.Fatal(err)
		}
	case known != errors.Is(err, ErrWrongPiece), known == errors.Is(err, ErrNoSum):
		t.Fatalf("sum known %v: %v", known, err)
	}
}

func (m *storeModel) Swarm(t *rapid.T) {
	x, b := m.pinned(t)
	i := rapid.IntRange(0, b.Geometry().NumPieces()-1).Draw(t, "piece")
	off, n := b.Geometry().Piece(i)
	if err := b.Expect(i, SumOf(x.data[off:off+n])); err != nil {
		t.Fatal(err)
	}
	had := b.Has(i)
	if fresh, err := b.TakePiece(i, x.data[off:off+n]); fresh == had || err != nil {
		t.Fatal(fresh, had, err)
	}
	x.have[i] = true
}

func (m *storeModel) Reject(t *rapid.T) {
	x, b := m.pinned(t)
	i := rapid.IntRange(0, b.Geometry().NumPieces()-1).Draw(t, "piece")
	b.Reject(i)
	if !b.Complete() {
		delete(x.have, i)
	}
}

func (m *storeModel) Discard(t *rapid.T) {
	x, b := m.pinned(t)
	b.Discard()
	if !b.Complete() {
		clear(x.have)
	}
}

func (m *storeModel) Finish(t *rapid.T) {
	x, b := m.pinned(t)
	off := int64(0)
	for i := range b.Geometry().NumPieces() {
		_, n := b.Geometry().Piece(i)
		if _, err := b.WritePiece(i, x.data[off:off+n]); err != nil {
			t.Fatal(err)
		}
		x.have[i] = true
		off += n
	}
	if err := b.VerifyWhole(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func (m *storeModel) PutBytes(t *rapid.T) {
	x := m.pick(t)
	var full *NoSpaceError
	if err := m.s.PutBytes(x.d, x.data); err != nil && !errors.As(err, &full) {
		t.Fatal(err)
	}
}

// Restart is a crash: nothing is released before.
func (m *storeModel) Restart(t *rapid.T) {
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, x := range m.blobs {
		for _, b := range x.pins {
			b.Release()
		}
		x.pins = nil
	}
	m.open(t)
}

// Check is run after each action.
func (m *storeModel) Check(t *rapid.T) {
	if u := m.s.Usage(); u > m.cap {
		t.Fatalf("usage %d is over the cap of %d", u, m.cap)
	}
	whole := map[digest.Digest]int64{}
	for _, e := range m.s.Complete() {
		whole[e.Digest] = e.Size
	}
	if fmt.Sprint(whole) != fmt.Sprint(m.told) {
		t.Fatalf("whole blobs %v, told of %v", whole, m.told)
	}
	onDisk := int64(0)
	for _, pattern := range []string{"complete/*", "partial/*.data"} {
		files, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			onDisk += info.Size()
		}
	}
	if onDisk != m.s.Usage() {
		t.Fatalf("%d bytes on disk, usage %d", onDisk, m.s.Usage())
	}
	for _, x := range m.blobs {
		if len(x.pins) == 0 {
			continue
		}
		b, prefix := x.pins[0], int64(0)
		for i := range b.Geometry().NumPieces() {
			off, n := b.Geometry().Piece(i)
			if b.Has(i) != (x.have[i] || b.Complete()) {
				t.Fatalf("piece %d: has %v", i, b.Has(i))
			}
			if !b.Has(i) {
				continue
			}
			if prefix == off {
				prefix += n
			}
			p := make([]byte, n)
			if _, err := b.ReadAt(p, off); err != nil || !bytes.Equal(p, x.data[off:off+n]) {
				t.Fatalf("piece %d is complete and wrong: %v", i, err)
			}
		}
		if b.Prefix() != prefix {
			t.Fatalf("prefix %d, want %d", b.Prefix(), prefix)
		}
	}
}

// TestStoreModel: whatever happens, complete pieces are right, the cap holds,
// what is pinned stays, files and accounts agree, and OnChange tells it all.
func TestStoreModel(t *testing.T) {
	var blobs []*modelBlob
	for _, n := range []int{10, MinPieceLength, MinPieceLength + 1, 2*MinPieceLength + 99, 3 * MinPieceLength} {
		data, d := testBlob(n)
		blobs = append(blobs, &modelBlob{data: data, d: d})
	}
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			rt.Fatal(err)
		}
		m := &storeModel{t: t, dir: dir, cap: 5 * MinPieceLength}
		for _, x := range blobs {
			m.blobs = append(m.blobs, &modelBlob{data: x.data, d: x.d})
		}
		m.open(rt)
		defer func() {
			_ = m.s.Close()
			_ = os.RemoveAll(dir)
		}()
		rt.Repeat(map[string]func(*rapid.T){
			"acquire": m.Acquire, "get": m.Get, "release": m.Release, "drop": m.Drop,
			"write piece": m.WritePiece, "take wrong piece": m.TakeWrongPiece, "swarm": m.Swarm,
			"reject": m.Reject, "discard": m.Discard, "finish": m.Finish, "put": m.PutBytes,
			"restart": m.Restart, "": m.Check,
		})
	})
}
