package members

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var allowMeta = cmp.AllowUnexported(meta{})

func TestMetaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := meta{
			id:       rapid.StringMatching(`[a-zA-Z0-9]{1,5}([-_.][a-z0-9]{1,40}){0,5}`).Draw(t, "id"),
			control:  rapid.Uint16Min(1).Draw(t, "control"),
			wire:     rapid.Uint16Min(1).Draw(t, "wire"),
			zone:     rapid.StringOfN(rapid.RuneFrom([]rune("az é-9/")), 0, 30, maxZone).Draw(t, "zone"),
			born:     rapid.Int64Range(0, math.MaxInt64).Draw(t, "born"),
			protocol: rapid.Uint16Min(1).Draw(t, "protocol"),
		}
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
		got, err := parseMeta(m.encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got, allowMeta); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestMetaFits: the longest of everything stays within the library's limit,
// beyond which it panics.
func TestMetaFits(t *testing.T) {
	m := meta{
		id: strings.Repeat("i", maxID), control: 65535, wire: 65535,
		zone: strings.Repeat("z", maxZone), born: math.MaxInt64, protocol: 65535,
	}
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	if n := len(m.encode()); n > maxMeta {
		t.Errorf("%d bytes", n)
	}
}

// TestMetaGolden fixes the format.
func TestMetaGolden(t *testing.T) {
	m := meta{id: "n1", control: 6501, wire: 6502, zone: "z", born: 1, protocol: 1}
	want := "\x01" + "\x01\x02n1" + "\x02\x02\x19\x65" + "\x03\x02\x19\x66" + "\x04\x01z" +
		"\x05\x08\x00\x00\x00\x00\x00\x00\x00\x01" + "\x06\x02\x00\x01"
	if diff := cmp.Diff(want, string(m.encode())); diff != "" {
		t.Errorf("encoding (-want +got):\n%s", diff)
	}
}

func TestParseMeta(t *testing.T) {
	good := meta{id: "n1", control: 1, wire: 2, zone: "z", born: 3, protocol: 4}
	enc := good.encode()
	field := func(tag byte, v string) []byte {
		return append([]byte{tag, byte(len(v))}, v...)
	}
	with := func(fields ...[]byte) []byte {
		b := []byte{metaVersion}
		for _, f := range fields {
			b = append(b, f...)
		}
		return b
	}
	base := [][]byte{field(tagID, "n1"), field(tagControl, "\x00\x01"), field(tagWire, "\x00\x02"), field(tagBorn, "\x00\x00\x00\x00\x00\x00\x00\x03"), field(tagProtocol, "\x00\x04")}
	replace := func(i int, f []byte) []byte {
		fs := append([][]byte(nil), base...)
		fs[i] = f
		return with(fs...)
	}
	for _, tc := range []struct {
		name string
		b    []byte
		want string
	}{
		{"good", enc, ""},
		{"no zone", with(base...), ""},
		{"unknown field", append(bytes.Clone(enc), field(200, "from the future")...), ""},
		{"unknown empty field", append(bytes.Clone(enc), field(200, "")...), ""},
		{"empty", nil, "0 bytes"},
		{"version only", []byte{metaVersion}, "node id"},
		{"too long", append(bytes.Clone(enc), make([]byte, maxMeta)...), "bytes"},
		{"other version", append([]byte{2}, enc[1:]...), "version 2"},
		{"cut in a value", enc[:len(enc)-1], "truncated"},
		{"cut in a header", append(bytes.Clone(enc), 9), "truncated"},
		{"length beyond the end", append(bytes.Clone(enc), 9, 255), "truncated"},
		{"twice", append(bytes.Clone(enc), field(tagZone, "y")...), "twice"},
		{"unknown twice", append(append(bytes.Clone(enc), 200, 0), 200, 0), "twice"},
		{"no id", replace(0, nil), "node id"},
		{"empty id", replace(0, field(tagID, "")), "node id"},
		{"id with a slash", replace(0, field(tagID, "a/b")), "node id"},
		{"id with double dot", replace(0, field(tagID, "a..b")), "node id"},
		{"long id", replace(0, field(tagID, strings.Repeat("a", 254))), "node id"},
		{"short port", replace(1, field(tagControl, "\x01")), "has 1 bytes"},
		{"long port", replace(1, field(tagControl, "\x01\x02\x03")), "has 3 bytes"},
		{"zero port", replace(2, field(tagWire, "\x00\x00")), "port"},
		{"no port", replace(2, nil), "port"},
		{"negative birth", replace(3, field(tagBorn, "\xff\x00\x00\x00\x00\x00\x00\x03")), "negative"},
		{"no protocol", replace(4, nil), "protocol"},
		{"zone with newline", append(with(base...), field(tagZone, "a\nb")...), "control character"},
		{"zone not UTF-8", append(with(base...), field(tagZone, "\xff")...), "UTF-8"},
		{"long zone", append(with(base...), field(tagZone, strings.Repeat("z", 64))...), "64 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := parseMeta(tc.b)
			if tc.want == "" {
				want := good
				if tc.name == "no zone" {
					want.zone = ""
				}
				if diff := cmp.Diff(want, m, allowMeta); err != nil || diff != "" {
					t.Errorf("error %v (-want +got):\n%s", err, diff)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if m != (meta{}) {
				t.Errorf("a result beside the error: %+v", m)
			}
		})
	}
}

// FuzzParseMeta: whatever the network says, what is accepted is valid, fits
// the limit, and means the same when this node passes it on.
func FuzzParseMeta(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{metaVersion})
	f.Add(meta{id: "n1", control: 1, wire: 2, zone: "z", born: 3, protocol: 4}.encode())
	f.Add(append(meta{id: "n1", control: 1, wire: 2, protocol: 4}.encode(), 200, 3, 'a', 'b', 'c'))
	f.Add(append(meta{id: "n1", control: 1, wire: 2, protocol: 4}.encode(), 9, 255))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if err := m.check(); err != nil {
			t.Fatalf("accepted %+v: %v", m, err)
		}
		enc := m.encode()
		if len(enc) > maxMeta {
			t.Fatalf("%d bytes", len(enc))
		}
		again, err := parseMeta(enc)
		if err != nil || again != m {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}
