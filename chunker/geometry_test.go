package chunker

import (
	"crypto/sha1"
	"encoding/hex"
	"testing"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"
)

func TestGeometryOf(t *testing.T) {
	tests := map[string]struct {
		size, piece int64
		n           int
	}{
		"one byte":        {1, MinPieceLength, 1},
		"one piece":       {MinPieceLength, MinPieceLength, 1},
		"two pieces":      {MinPieceLength + 1, MinPieceLength, 2},
		"128 MiB":         {128 << 20, 128 << 10, 1024},
		"over 128 MiB":    {128<<20 + 1, 256 << 10, 513},
		"512 MiB":         {512 << 20, 256 << 10, 2048},
		"just over":       {512<<20 + 1, 512 << 10, 1025},
		"1 GiB":           {1 << 30, 512 << 10, 2048},
		"8 GiB":           {8 << 30, 4 << 20, 2048},
		"40 GiB":          {40 << 30, MaxPieceLength, 10240},
		"the largest":     {MaxBlobSize, MaxPieceLength, 262144},
		"too large":       {MaxBlobSize + 1, 0, 0},
		"empty":           {0, 0, 0},
		"negative":        {-1, 0, 0},
		"just over 8 GiB": {8<<30 + 1, MaxPieceLength, 2049},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g, err := GeometryOf(tt.size)
			if (err == nil) != (tt.piece != 0) {
				t.Fatalf("GeometryOf(%d): %v", tt.size, err)
			}
			if err == nil && (g.PieceLength != tt.piece || g.NumPieces() != tt.n) {
				t.Errorf("%d pieces of %d, want %d of %d", g.NumPieces(), g.PieceLength, tt.n, tt.piece)
			}
		})
	}
}

func TestGeometryCoversTheBlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, err := GeometryOf(rapid.Int64Range(1, 64<<30).Draw(t, "size"))
		if err != nil {
			t.Fatal(err)
		}
		if g.PieceLength&(g.PieceLength-1) != 0 || g.PieceLength < MinPieceLength || g.PieceLength > MaxPieceLength {
			t.Fatalf("piece length %d", g.PieceLength)
		}
		if g.PieceLength < MaxPieceLength && g.NumPieces() > targetPieces {
			t.Fatalf("%d pieces although they could be longer", g.NumPieces())
		}
		var next int64
		for i := range g.NumPieces() {
			off, n := g.Piece(i)
			if off != next || n < 1 || n > g.PieceLength || g.PieceAt(off) != i || g.PieceAt(off+n-1) != i {
				t.Fatalf("piece %d is [%d, %d), previous ended at %d", i, off, off+n, next)
			}
			next = off + n
		}
		if next != g.Size {
			t.Fatalf("pieces end at %d of %d", next, g.Size)
		}
	})
}

func identity(t testing.TB, cluster, blob string, size int64) Identity {
	g, err := GeometryOf(size)
	if err != nil {
		t.Fatal(err)
	}
	return Identity{Cluster: cluster, Digest: digest.FromString(blob), Geometry: g}
}

// TestIdentityGolden pins what nodes of different versions must agree on.
func TestIdentityGolden(t *testing.T) {
	got := identity(t, "prod", "layer", 1<<20).InfoHash()
	if want := "f1d4a45ef604d420cc03199233e0bf48e1ed5363"; hex.EncodeToString(got[:]) != want {
		t.Errorf("infohash %x, want %s: a change here splits every cluster during an upgrade", got, want)
	}
}

func TestIdentityIsAValidTorrent(t *testing.T) {
	id := identity(t, "prod", "layer", 5<<20+7)
	var info metainfo.Info
	if err := bencode.Unmarshal(id.InfoBytes(), &info); err != nil {
		t.Fatal(err)
	}
	again, err := bencode.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	if sha1.Sum(again) != id.InfoHash() {
		t.Error("the library encodes the info differently: keys are not in order")
	}
	if info.Length != id.Geometry.Size || info.NumPieces() != id.Geometry.NumPieces() || info.PieceLength != id.Geometry.PieceLength {
		t.Errorf("info %+v", info)
	}
}

func TestIdentityDiffers(t *testing.T) {
	base := identity(t, "prod", "layer", 1<<20)
	for name, other := range map[string]Identity{
		"cluster": identity(t, "test", "layer", 1<<20),
		"digest":  identity(t, "prod", "other", 1<<20),
		"size":    identity(t, "prod", "layer", 1<<20+1),
	} {
		if other.InfoHash() == base.InfoHash() {
			t.Errorf("another %s has the same infohash", name)
		}
		if name != "size" && other.Placeholder(0) == base.Placeholder(0) {
			t.Errorf("another %s has the same placeholders", name)
		}
	}
	if base.Placeholder(0) == base.Placeholder(1) {
		t.Error("pieces share a placeholder")
	}
}

func TestBitfield(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "n")
		f := NewBitfield(n)
		model := map[int]bool{}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "i")
			if rapid.Bool().Draw(t, "set") {
				f.Set(i)
				model[i] = true
			} else {
				f.Clear(i)
				delete(model, i)
			}
		}
		g, err := BitfieldFromBytes(n, f.Clone().Bytes())
		if err != nil {
			t.Fatal(err)
		}
		in, out := 0, 0
		for i := range g.All() {
			if !model[i] {
				t.Fatalf("%d is in the set", i)
			}
			in++
		}
		for i := range g.Missing() {
			if model[i] {
				t.Fatalf("%d is missing", i)
			}
			out++
		}
		if in != len(model) || in+out != n || g.Count() != in || g.Full() != (in == n) {
			t.Fatalf("%d in, %d out, %d counted, of %d", in, out, g.Count(), n)
		}
		if g.Has(-1) || g.Has(n) {
			t.Fatal("has a piece out of range")
		}
	})
}

func FuzzBitfieldFromBytes(f *testing.F) {
	f.Add(9, []byte{0xff, 0x80})
	f.Add(9, []byte{0xff, 0x81})
	f.Add(0, []byte{})
	f.Fuzz(func(t *testing.T, n int, p []byte) {
		if n < 0 || n > 1<<20 {
			return
		}
		b, err := BitfieldFromBytes(n, p)
		if err != nil {
			return
		}
		for i := range b.All() {
			if i >= n {
				t.Fatalf("piece %d of %d", i, n)
			}
		}
	})
}

func FuzzSumText(f *testing.F) {
	f.Add([]byte(SumOf(nil).String()))
	f.Add([]byte("zz"))
	f.Fuzz(func(t *testing.T, p []byte) {
		var s Sum
		if s.UnmarshalText(p) != nil {
			return
		}
		var again Sum
		text, _ := s.MarshalText()
		if err := again.UnmarshalText(text); err != nil || again != s {
			t.Fatalf("%q became %v, %v", p, again, err)
		}
	})
}

func FuzzDecodeSums(f *testing.F) {
	f.Add(append(encodeSumsHeader(MinPieceLength), encodeSum(SumOf(nil))...))
	f.Add([]byte(sumsMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		g, have, sums, err := decodeSums(p)
		if err == nil && (have.Len() != g.NumPieces() || len(sums) != g.NumPieces()) {
			t.Fatalf("%d bits and %d sums for %d pieces", have.Len(), len(sums), g.NumPieces())
		}
	})
}
