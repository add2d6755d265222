package tracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
)

func TestHelloCheck(t *testing.T) {
	ok := Hello{Version: Version, Node: "a", Digest: blobD, Size: 1 << 20}
	tests := map[string]struct {
		change func(*Hello)
		ok     bool
	}{
		"large":           {func(*Hello) {}, true},
		"small":           {func(h *Hello) { h.Size = 0 }, true},
		"bitfield":        {func(h *Hello) { h.Have = []byte{0xf0} }, true},
		"future version":  {func(h *Hello) { h.Version++ }, false},
		"another's name":  {func(h *Hello) { h.Node = "b" }, false},
		"no name":         {func(h *Hello) { h.Node = "" }, false},
		"no digest":       {func(h *Hello) { h.Digest = "" }, false},
		"path as digest":  {func(h *Hello) { h.Digest = "sha256:../../etc/passwd" }, false},
		"sha512":          {func(h *Hello) { h.Digest = digest.SHA512.FromString("x") }, false},
		"negative size":   {func(h *Hello) { h.Size = -1 }, false},
		"huge size":       {func(h *Hello) { h.Size = chunker.MaxBlobSize + 1 }, false},
		"short bitfield":  {func(h *Hello) { h.Size = 1 << 30; h.Have = []byte{1} }, false},
		"long bitfield":   {func(h *Hello) { h.Have = make([]byte, 1000) }, false},
		"negative number": {func(h *Hello) { h.Version = -1 }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := ok
			tt.change(&h)
			err := h.Check("a")
			if (err == nil) != tt.ok {
				t.Errorf("Check: %v, want ok %v", err, tt.ok)
			}
			if err != nil && !errors.Is(err, ErrMessage) {
				t.Errorf("%v does not wrap ErrMessage", err)
			}
		})
	}
}

func TestSplitRespectsMaxLine(t *testing.T) {
	var up Up
	var down Down
	for i := range 5000 {
		s := PieceSum{Index: 200_000 + i, Sum: chunker.SumOf([]byte{byte(i)}), By: strings.Repeat("n", 60)}
		up.Have = append(up.Have, s)
		up.Got = append(up.Got, 200_000+i, i, i+1, i+2)
		down.Sums = append(down.Sums, s)
	}
	up.Whole, down.Done = true, true
	var gotUp Up
	for _, part := range up.Split() {
		if b, _ := json.Marshal(part); len(b) >= MaxLine {
			t.Errorf("a part takes %d bytes", len(b))
		}
		gotUp.Merge(part)
	}
	if diff := cmp.Diff(up, gotUp); diff != "" {
		t.Errorf("up changed by Split and Merge (-want +got):\n%s", diff)
	}
	var gotDown Down
	parts := down.Split()
	for i, part := range parts {
		if b, _ := json.Marshal(part); len(b) >= MaxLine {
			t.Errorf("a part takes %d bytes", len(b))
		}
		if part.Done && i != len(parts)-1 {
			t.Error("Done comes before the end")
		}
		gotDown.Merge(part)
	}
	if diff := cmp.Diff(down, gotDown); diff != "" {
		t.Errorf("down changed by Split and Merge (-want +got):\n%s", diff)
	}
}

func TestDecoderRefusesLongLines(t *testing.T) {
	r := io.MultiReader(strings.NewReader(`{"error":"`), strings.NewReader(strings.Repeat("x", MaxLine)), strings.NewReader("\"}\n"))
	if _, err := NewDecoder[Down](r).Next(); !errors.Is(err, ErrMessage) {
		t.Errorf("got %v, want ErrMessage", err)
	}
}

func TestOutboxMergesWhatWaits(t *testing.T) {
	b := NewOutbox[Up]()
	b.Put(Up{Got: []int{1}})
	b.Put(Up{Got: []int{2}, Progress: []Progress{{1, 5}}})
	b.Put(Up{Progress: []Progress{{1, 9}}})
	b.Close()
	b.Put(Up{Got: []int{3}}) // too late
	got, ok := b.Next(context.Background())
	if diff := cmp.Diff(Up{Got: []int{1, 2}, Progress: []Progress{{1, 9}}}, got); diff != "" || !ok {
		t.Errorf("ok %v, (-want +got):\n%s", ok, diff)
	}
	if _, ok := b.Next(context.Background()); ok {
		t.Error("closed and empty outbox has a message")
	}
}

func TestSumsOnTheWire(t *testing.T) {
	sum := func(i int) chunker.Sum { return chunker.SumOf([]byte{byte(i)}) }
	in := Sums{{7, sum(7), "b"}, {4, sum(4), "a"}, {6, sum(6), "b"}, {5, sum(5), "a"}, {8, sum(8), "a"}, {9, sum(9), ""}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), `"i":`); n != 4 {
		t.Errorf("%d runs in %s, want 4", n, b)
	}
	var got Sums
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	byIndex := func(a, b PieceSum) int { return a.Index - b.Index }
	slices.SortFunc(in, byIndex)
	slices.SortFunc(got, byIndex)
	if diff := cmp.Diff(in, got); diff != "" {
		t.Errorf("changed on the wire (-want +got):\n%s", diff)
	}
	for _, bad := range []string{`[{"i":1,"sums":"AAAA"}]`, `[{"i":1,"sums":"!"}]`, `{"i":1}`, `[{"i":"x"}]`} {
		if json.Unmarshal([]byte(bad), &got) == nil {
			t.Errorf("%s was understood", bad)
		}
	}
}

func TestOutboxKeepsThePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewOutbox[Up]()
		b.SetPace(time.Second)
		began := time.Now()
		next := func(what string, want time.Duration, got ...int) {
			t.Helper()
			u, ok := b.Next(t.Context())
			if after := time.Since(began); !ok || after != want || !slices.Equal(u.Got, got) {
				t.Errorf("%s: %v after %v, ok %v; want %v after %v", what, u.Got, after, ok, got, want)
			}
		}
		b.Put(Up{Got: []int{1}})
		next("the first goes at once", 0, 1)
		b.Put(Up{Got: []int{2}})
		time.AfterFunc(300*time.Millisecond, func() { b.Put(Up{Got: []int{3}}) })
		next("the next ones are collected", time.Second, 2, 3)
		b.Put(Up{Got: []int{4}})
		time.AfterFunc(300*time.Millisecond, func() { b.Put(Up{MorePeers: true}) })
		next("but what is urgent goes, and takes the others along", 1300*time.Millisecond, 4)
		b.Put(Up{Got: []int{5}})
		time.AfterFunc(100*time.Millisecond, b.Close)
		next("and so does the end", 1400*time.Millisecond, 5)
	})
}

// FuzzUp feeds hostile lines to the decoder and, if they pass the checks, to
// both machines: nothing may panic, and the invariants must hold.
func FuzzUp(f *testing.F) {
	for _, u := range []Up{
		{Hello: hello("a", 4<<20, true), Got: []int{0, 1}},
		{Have: []PieceSum{{Index: 1, Sum: chunker.SumOf(nil)}}, Disputes: []Dispute{{0, "b"}}},
		{Failed: []Failure{{1, FailNoRange}}, Progress: []Progress{{1, 10}}, Lost: []int{2}, MorePeers: true},
		{Whole: true, WholeSize: 4 << 20},
	} {
		b, err := json.Marshal(u)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		l := newLarge(t, 4<<20, Params{})
		s := newSmall(Params{})
		for _, n := range []string{"a", "b"} {
			l.Join(hello(n, 4<<20, true), epoch)
			s.Join(hello(n, 0, true), epoch)
		}
		dec := NewDecoder[Up](bytes.NewReader(line))
		for {
			u, err := dec.Next()
			if err != nil {
				return
			}
			if u.Hello != nil && u.Hello.Check("a") == nil && u.Hello.Size == 4<<20 {
				l.Join(u.Hello, epoch)
			}
			if u.Check(l.Pieces()) == nil {
				l.Handle("a", u, epoch)
				if err := l.check(epoch); err != nil {
					t.Fatal(err)
				}
			}
			if u.Check(0) == nil {
				s.Handle("a", u, epoch)
			}
		}
	})
}

// FuzzDown feeds hostile lines to a puller's decoder.
func FuzzDown(f *testing.F) {
	b, err := json.Marshal(Down{
		Sums: []PieceSum{{Index: 1, Sum: chunker.SumOf(nil), By: "a"}}, Grants: []Lease{{1, 2, 3, "", false}},
		Peers: []string{"x"}, Forget: []int{1}, Beat: &Beat{1, 2, 3, 4},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, line []byte) {
		d, err := NewDecoder[Down](bytes.NewReader(line)).Next()
		if err != nil || d.Check(16) != nil {
			return
		}
		for _, l := range d.Grants {
			if l.First < 0 || l.Count < 0 || l.First+l.Count > 16 {
				t.Fatalf("lease %+v passed the check", l)
			}
		}
	})
}
