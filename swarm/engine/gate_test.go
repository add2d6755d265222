package engine

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/chunker"
)

// odd is a blob of three pieces, the last one short and with a short chunk.
func odd() chunker.Geometry {
	const n = 2 * chunker.ChunkLength
	return chunker.Geometry{Size: 2*n + chunker.ChunkLength + 100, PieceLength: n}
}

func TestGate(t *testing.T) {
	const k = chunker.ChunkLength
	bits := func(set ...bool) []bool { return append(set, make([]bool, 8-len(set))...) }
	none := pp.Message{Type: pp.HaveNone}
	for name, tc := range map[string]struct {
		ms   []pp.Message
		want string // part of the last one's error; empty: all pass
	}{
		"what ours sends": {ms: []pp.Message{
			{Type: pp.Bitfield, Bitfield: bits(true, false, true)},
			{Type: pp.Have, Index: 1}, {Type: pp.Interested}, {Type: pp.Unchoke}, {Type: pp.NotInterested}, {Type: pp.Choke}, {Keepalive: true},
			{Type: pp.Request, Index: 1, Begin: k, Length: k}, {Type: pp.Cancel, Index: 1, Begin: k, Length: k},
			{Type: pp.Reject, Index: 2, Begin: k, Length: 100}, {Type: pp.Piece, Index: 2, Begin: k, Piece: make([]byte, 100)},
			{Type: pp.Piece, Index: 2, Piece: make([]byte, k)},
		}},
		"all":                   {ms: []pp.Message{{Type: pp.HaveAll}, {Type: pp.Have, Index: 2}}},
		"have of an unknown":    {[]pp.Message{none, {Type: pp.Have, Index: 3}}, "piece 3 of 3"},
		"have first":            {[]pp.Message{{Type: pp.Have}}, "before any bitfield"},
		"declared twice":        {[]pp.Message{none, {Type: pp.HaveAll}}, "after the beginning"},
		"bitfield later":        {[]pp.Message{none, {Type: pp.Bitfield, Bitfield: bits()}}, "after the beginning"},
		"spare bit":             {[]pp.Message{{Type: pp.Bitfield, Bitfield: bits(false, false, false, true)}}, "beyond the last"},
		"bitfield length":       {[]pp.Message{{Type: pp.Bitfield, Bitfield: make([]bool, 16)}}, "2 bytes for 3"},
		"no bitfield":           {[]pp.Message{{Type: pp.Bitfield}}, "0 bytes for 3"},
		"chunk too long":        {[]pp.Message{{Type: pp.Piece, Index: 2, Begin: k, Piece: make([]byte, 101)}}, "101 bytes"},
		"chunk longer than any": {[]pp.Message{{Type: pp.Piece, Piece: make([]byte, k+1)}}, fmt.Sprint(k+9, " bytes")},
		"chunk too short":       {[]pp.Message{{Type: pp.Piece, Piece: make([]byte, k-1)}}, fmt.Sprint(k-1, " bytes")},
		"chunk off the grid":    {[]pp.Message{{Type: pp.Piece, Begin: 1, Piece: make([]byte, k)}}, "at 1"},
		"chunk behind the end":  {[]pp.Message{{Type: pp.Piece, Index: 2, Begin: 2 * k}}, fmt.Sprint("at ", 2*k)},
		"request across chunks": {[]pp.Message{{Type: pp.Request, Length: 2 * k}}, fmt.Sprint(2*k, " bytes")},
		"request of nothing":    {[]pp.Message{{Type: pp.Request}}, "0 bytes"},
		"request wraps around":  {[]pp.Message{{Type: pp.Request, Begin: 1<<32 - k, Length: k}}, fmt.Sprint("at ", 1<<32-k)},
		"cancel out of range":   {[]pp.Message{{Type: pp.Cancel, Index: 1<<32 - 1, Length: k}}, "piece 4294967295 of 3"},
		"extension":             {[]pp.Message{{Type: pp.Extended, ExtendedPayload: []byte("de")}}, "unexpected Extended"},
		"port":                  {[]pp.Message{{Type: pp.Port}}, "unexpected Port"},
		"hashes":                {[]pp.Message{{Type: pp.Hashes}}, "unexpected"},
	} {
		t.Run(name, func(t *testing.T) {
			var wire []byte
			for _, m := range tc.ms {
				wire = append(wire, m.MustMarshalBinary()...)
			}
			n := 0
			err := listen(wire, odd(), func(message) { n++ })
			switch {
			case tc.want == "":
				if err != io.EOF || n != len(tc.ms) {
					t.Errorf("%d of %d messages passed: %v", n, len(tc.ms), err)
				}
			case n != len(tc.ms)-1 || !strings.Contains(err.Error(), tc.want):
				t.Errorf("%d messages passed, then %v, want %q", n, err, tc.want)
			}
		})
	}
}

func TestUnknownMessage(t *testing.T) {
	if err := listen([]byte{0, 0, 0, 1, 0x77}, odd(), func(message) {}); err == nil || !strings.Contains(err.Error(), "unexpected") {
		t.Error(err)
	}
}

// listen reads messages as a link does.
func listen(wire []byte, g chunker.Geometry, pass func(m message)) error {
	r, door := bufio.NewReaderSize(bytes.NewReader(wire), readBuffer), gate{geo: g}
	for {
		m, err := readMessage(r, g.NumPieces())
		if err == nil {
			err = door.admit(m)
		}
		if err != nil {
			return err
		}
		pass(m)
		if m.kind == pp.Piece && !m.keepalive {
			if _, err := r.Discard(int(m.length)); err != nil {
				return err
			}
		}
	}
}

// TestWrite: what is written is what the library, which is somebody else's
// reading of the protocol, takes it for.
func TestWrite(t *testing.T) {
	have := chunker.NewBitfield(11)
	have.Set(0)
	have.Set(10)
	c := chunk{piece: 7, begin: 3 * chunker.ChunkLength, n: 5}
	var wire []byte
	wire = appendHave(wire, have)
	wire = appendMessage(wire, pp.Unchoke)
	wire = appendMessage(wire, pp.Have, 9)
	wire = appendRequest(wire, pp.Request, c)
	wire = appendRequest(wire, pp.Cancel, c)
	wire = append(appendPiece(wire, c), "bytes"...)
	d := pp.Decoder{R: bufio.NewReader(bytes.NewReader(wire)), MaxLength: 1000}
	bits := make([]bool, 16)
	bits[0], bits[10] = true, true
	for _, want := range []pp.Message{
		{Type: pp.Bitfield, Bitfield: bits}, {Type: pp.Unchoke}, {Type: pp.Have, Index: 9},
		{Type: pp.Request, Index: 7, Begin: 3 * chunker.ChunkLength, Length: 5},
		{Type: pp.Cancel, Index: 7, Begin: 3 * chunker.ChunkLength, Length: 5},
		{Type: pp.Piece, Index: 7, Begin: 3 * chunker.ChunkLength, Piece: []byte("bytes")},
	} {
		var got pp.Message
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// FuzzGate: what is let through keeps to what the rest relies on.
func FuzzGate(f *testing.F) {
	for _, ms := range hostile() {
		var b []byte
		for _, m := range ms {
			b = append(b, m.MustMarshalBinary()...)
		}
		f.Add(b)
	}
	geo := odd()
	f.Fuzz(func(t *testing.T, wire []byte) {
		declared := 0
		_ = listen(wire, geo, func(m message) {
			if m.keepalive {
				return
			}
			switch m.kind {
			case pp.HaveAll, pp.HaveNone, pp.Bitfield:
				if declared++; declared > 1 {
					t.Fatal("pieces declared twice")
				}
			case pp.Have:
				if declared == 0 || int(m.index) >= geo.NumPieces() {
					t.Fatalf("have of %d", m.index)
				}
			case pp.Request, pp.Cancel, pp.Reject, pp.Piece:
				if int(m.index) >= geo.NumPieces() {
					t.Fatalf("piece %d", m.index)
				}
				_, n := geo.Piece(int(m.index))
				if end := int64(m.begin) + int64(m.length); end > n || m.length == 0 {
					t.Fatalf("%v from %d to %d of %d", m.kind, m.begin, end, n)
				}
			case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested:
			default:
				t.Fatalf("%v", m.kind)
			}
		})
	})
}
