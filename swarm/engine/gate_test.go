package engine

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"testing"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// odd is a blob of three pieces, the last one short and with a short chunk.
func odd(t testing.TB) chunker.Geometry {
	t.Helper()
	g, err := chunker.GeometryOf(2*chunker.MinPieceLength + chunker.ChunkLength + 100)
	if err != nil {
		t.Fatal(err)
	}
	return g
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
			{Type: pp.Extended, ExtendedPayload: []byte("de")}, {Type: pp.Bitfield, Bitfield: bits(true, false, true)},
			{Type: pp.Have, Index: 1}, {Type: pp.Interested}, {Type: pp.Unchoke}, {Type: pp.NotInterested}, {Type: pp.Choke}, {Keepalive: true},
			{Type: pp.Request, Index: 1, Begin: k, Length: k}, {Type: pp.Cancel, Index: 1, Begin: k, Length: k},
			{Type: pp.Reject, Index: 2, Begin: k, Length: 100}, {Type: pp.Piece, Index: 2, Begin: k, Piece: make([]byte, 100)},
			{Type: pp.Piece, Index: 2, Piece: make([]byte, k)},
		}},
		"all":                     {ms: []pp.Message{{Type: pp.HaveAll}, {Type: pp.Have, Index: 2}}},
		"have of an unknown":      {[]pp.Message{none, {Type: pp.Have, Index: 3}}, "piece 3 of 3"},
		"have first":              {[]pp.Message{{Type: pp.Have}}, "before any bitfield"},
		"declared twice":          {[]pp.Message{none, {Type: pp.HaveAll}}, "after the beginning"},
		"bitfield later":          {[]pp.Message{none, {Type: pp.Bitfield, Bitfield: bits()}}, "after the beginning"},
		"spare bit":               {[]pp.Message{{Type: pp.Bitfield, Bitfield: bits(false, false, false, true)}}, "piece 3 of 3"},
		"bitfield length":         {[]pp.Message{{Type: pp.Bitfield, Bitfield: make([]bool, 16)}}, "16 bits for 3"},
		"no bitfield":             {[]pp.Message{{Type: pp.Bitfield}}, "0 bits for 3"},
		"chunk too long":          {[]pp.Message{{Type: pp.Piece, Index: 2, Begin: k, Piece: make([]byte, 101)}}, "101 bytes"},
		"chunk too short":         {[]pp.Message{{Type: pp.Piece, Piece: make([]byte, k-1)}}, fmt.Sprint(k-1, " bytes")},
		"chunk off the grid":      {[]pp.Message{{Type: pp.Piece, Begin: 1, Piece: make([]byte, k)}}, "at 1"},
		"chunk behind the end":    {[]pp.Message{{Type: pp.Piece, Index: 2, Begin: 2 * k}}, fmt.Sprint("at ", 2*k)},
		"request across chunks":   {[]pp.Message{{Type: pp.Request, Length: 2 * k}}, fmt.Sprint(2*k, " bytes")},
		"request of nothing":      {[]pp.Message{{Type: pp.Request}}, "0 bytes"},
		"request wraps around":    {[]pp.Message{{Type: pp.Request, Begin: 1<<32 - k, Length: k}}, fmt.Sprint("at ", 1<<32-k)},
		"cancel out of range":     {[]pp.Message{{Type: pp.Cancel, Index: 1<<32 - 1, Length: k}}, "piece 4294967295 of 3"},
		"nudges":                  {ms: []pp.Message{{Type: pp.Extended, ExtendedID: nudgeID}, {Type: pp.Extended, ExtendedID: nudgeID}}},
		"nudge with a payload":    {[]pp.Message{{Type: pp.Extended, ExtendedID: nudgeID, ExtendedPayload: []byte("x")}}, "extension 1"},
		"extension not offered":   {[]pp.Message{{Type: pp.Extended, ExtendedID: 2}}, "extension 2"},
		"second handshake":        {[]pp.Message{{Type: pp.Extended}, {Type: pp.Extended}}, "second"},
		"long handshake":          {[]pp.Message{{Type: pp.Extended, ExtendedPayload: make([]byte, maxHandshake+1)}}, "4097 bytes"},
		"port":                    {[]pp.Message{{Type: pp.Port}}, "unexpected Port"},
		"hashes":                  {[]pp.Message{{Type: pp.Hashes}}, "unexpected"},
		"type nobody knows":       {[]pp.Message{{Type: 0x77}}, "unexpected"},
		"type that closes always": {[]pp.Message{{Type: invalid}}, "unexpected"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGate(odd(t), chunker.ChunkLength)
			for i, m := range tc.ms {
				err := g.admit(&m)
				switch {
				case i < len(tc.ms)-1 || tc.want == "":
					if err != nil {
						t.Fatalf("message %d: %v", i, err)
					}
				case err == nil || !strings.Contains(err.Error(), tc.want):
					t.Errorf("got %v, want %q", err, tc.want)
				}
			}
		})
	}
}

// FuzzGate decodes a stream as the library does. What the gate lets through
// must keep to the invariants that the library relies on.
func FuzzGate(f *testing.F) {
	for _, ms := range hostile() {
		var b []byte
		for _, m := range ms {
			b = append(b, m.MustMarshalBinary()...)
		}
		f.Add(b)
	}
	geo := odd(f)
	f.Fuzz(func(t *testing.T, wire []byte) {
		g := newGate(geo, chunker.ChunkLength)
		d := pp.Decoder{R: bufio.NewReader(bytes.NewReader(wire)), MaxLength: 4 * chunker.ChunkLength}
		declared := 0
		for {
			var m pp.Message
			if d.Decode(&m) != nil {
				return
			}
			if g.admit(&m) != nil || m.Keepalive {
				continue
			}
			switch m.Type {
			case pp.HaveAll, pp.HaveNone, pp.Bitfield:
				if declared++; declared > 1 {
					t.Fatal("pieces declared twice")
				}
			case pp.Have:
				if declared == 0 || int(m.Index) >= geo.NumPieces() {
					t.Fatalf("have of %d", m.Index)
				}
			case pp.Request, pp.Cancel, pp.Reject, pp.Piece:
				if int(m.Index) >= geo.NumPieces() {
					t.Fatalf("piece %d", m.Index)
				}
				_, n := geo.Piece(int(m.Index))
				if end := int64(m.Begin) + max(int64(m.Length), int64(len(m.Piece))); end > n || end == int64(m.Begin) {
					t.Fatalf("%v from %d to %d of %d", m.Type, m.Begin, end, n)
				}
			case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested:
			case pp.Extended:
				if m.ExtendedID != 0 && (m.ExtendedID != nudgeID || len(m.ExtendedPayload) > 0) {
					t.Fatalf("extension %d", m.ExtendedID)
				}
			default:
				t.Fatalf("%v", m.Type)
			}
		}
	})
}
