package chunker

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Sum is the sha256 of one piece. Its text form is lowercase hex.
type Sum [sha256.Size]byte

// SumOf hashes a piece.
func SumOf(p []byte) Sum { return sha256.Sum256(p) }

// String returns the hex form.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes the hex form.
func (s Sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads 64 hex digits.
func (s *Sum) UnmarshalText(p []byte) error {
	if len(p) != 2*len(s) {
		return fmt.Errorf("piece sum of %d characters, want %d", len(p), 2*len(s))
	}
	var got Sum
	if _, err := hex.Decode(got[:], p); err != nil {
		return fmt.Errorf("piece sum: %w", err)
	}
	*s = got
	return nil
}
