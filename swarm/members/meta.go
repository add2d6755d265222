package members

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxMeta is memberlist's limit on metadata, in bytes. It travels in single
// datagrams.
const maxMeta = 512

// ProtocolVersion is the version of the protocols between nodes that this
// build speaks; see [Member].
const ProtocolVersion = 1

// metaVersion is the first byte of metadata.
const metaVersion = 1

// Tags of the fields of metadata. A number is never reused.
const (
	tagID       = 1 // string: the node's id
	tagControl  = 2 // 2 bytes: port of the control plane
	tagWire     = 3 // 2 bytes: port of the peer wire
	tagZone     = 4 // string: zone, absent when none
	tagBorn     = 5 // 8 bytes: start of the process, Unix time in ms
	tagProtocol = 6 // 2 bytes: ProtocolVersion
)

const (
	// maxID is the limit of DNS names, which node names keep to.
	maxID = 253
	// maxZone is the limit of Kubernetes label values, where zones come from.
	maxZone = 63
	// maxLabel is the longest cluster id; memberlist admits 255 bytes.
	maxLabel = 253
)

// meta is what a member says about itself, beyond its gossip address.
type meta struct {
	id            string
	control, wire uint16
	zone          string
	born          int64 // Unix ms
	protocol      uint16
}

// encode is the inverse of parseMeta. The result fits maxMeta for every meta
// that passes check.
func (m meta) encode() []byte {
	b := []byte{metaVersion}
	str := func(tag byte, s string) {
		b = append(append(b, tag, byte(len(s))), s...)
	}
	u16 := func(tag byte, v uint16) {
		b = binary.BigEndian.AppendUint16(append(b, tag, 2), v)
	}
	str(tagID, m.id)
	u16(tagControl, m.control)
	u16(tagWire, m.wire)
	if m.zone != "" {
		str(tagZone, m.zone)
	}
	b = binary.BigEndian.AppendUint64(append(b, tagBorn, 8), uint64(m.born))
	u16(tagProtocol, m.protocol)
	return b
}

// parseMeta reads metadata from the network: anything may be in it.
func parseMeta(b []byte) (meta, error) {
	if len(b) == 0 || len(b) > maxMeta {
		return meta{}, fmt.Errorf("metadata of %d bytes", len(b))
	}
	if b[0] != metaVersion {
		return meta{}, fmt.Errorf("metadata of version %d", b[0])
	}
	b = b[1:]
	var (
		m    meta
		seen [256]bool
	)
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return meta{}, errors.New("metadata is truncated")
		}
		tag, v := b[0], b[2:2+int(b[1])]
		b = b[2+len(v):]
		if seen[tag] {
			return meta{}, fmt.Errorf("metadata has field %d twice", tag)
		}
		seen[tag] = true
		if want, fixed := map[byte]int{tagControl: 2, tagWire: 2, tagBorn: 8, tagProtocol: 2}[tag]; fixed && len(v) != want {
			return meta{}, fmt.Errorf("metadata field %d has %d bytes", tag, len(v))
		}
		switch tag {
		case tagID:
			m.id = string(v)
		case tagControl:
			m.control = binary.BigEndian.Uint16(v)
		case tagWire:
			m.wire = binary.BigEndian.Uint16(v)
		case tagZone:
			m.zone = string(v)
		case tagBorn:
			m.born = int64(binary.BigEndian.Uint64(v))
		case tagProtocol:
			m.protocol = binary.BigEndian.Uint16(v)
		}
	}
	if err := m.check(); err != nil {
		return meta{}, err
	}
	return m, nil
}

// check holds for all metadata, our own included.
func (m meta) check() error {
	if err := checkName(m.id, maxID); err != nil {
		return fmt.Errorf("node id: %w", err)
	}
	if m.control == 0 || m.wire == 0 {
		return errors.New("port is zero")
	}
	if m.zone != "" {
		if err := checkZone(m.zone); err != nil {
			return fmt.Errorf("zone: %w", err)
		}
	}
	if m.born < 0 {
		return errors.New("start time is negative")
	}
	if m.protocol == 0 {
		return errors.New("protocol version is zero")
	}
	return nil
}

// checkName admits what host names consist of: letters, digits and, inside,
// single dots, dashes and underscores. It is the rule for the names in
// certificates, too.
func checkName(s string, limit int) error {
	if s == "" {
		return errors.New("is empty")
	}
	if len(s) > limit {
		return fmt.Errorf("%d bytes are more than %d", len(s), limit)
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		inner := (c == '-' || c == '_' || c == '.') && i > 0 && i < len(s)-1
		if !alnum && !inner || c == '.' && s[i-1] == '.' {
			return fmt.Errorf("%q: byte %d is not allowed there", s, i)
		}
	}
	return nil
}

// checkZone admits any printable text of a label's length: clouds name their
// zones as they like.
func checkZone(s string) error {
	if len(s) > maxZone {
		return fmt.Errorf("%d bytes are more than %d", len(s), maxZone)
	}
	if !utf8.ValidString(s) {
		return errors.New("is not UTF-8")
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%q has a control character", s)
		}
	}
	return nil
}
