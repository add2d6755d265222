package containerd

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/opencontainers/go-digest"
)

// key is the value of a sha256 digest. Being 32 bytes it cannot be anything
// but a well-formed name, whatever it was read from.
type key [sha256.Size]byte

// keyOf reads a digest; false if it is not a sha256 digest in canonical form.
func keyOf(d digest.Digest) (key, bool) {
	const prefix = "sha256:"
	if len(d) < len(prefix) || d[:len(prefix)] != prefix {
		return key{}, false
	}
	return keyOfHex(string(d[len(prefix):]))
}

// keyOfHex reads the name of a blob's file: 64 digits, a to f in lower case.
func keyOfHex(s string) (k key, ok bool) {
	if len(s) != hex.EncodedLen(len(k)) {
		return key{}, false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return key{}, false
		}
	}
	_, err := hex.Decode(k[:], []byte(s))
	return k, err == nil
}

func (k key) hex() string { return hex.EncodeToString(k[:]) }

func (k key) digest() digest.Digest { return digest.NewDigestFromEncoded(digest.SHA256, k.hex()) }
