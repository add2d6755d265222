package pull

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Kinds of failure that callers tell apart. They are wrapped; test with
// errors.Is.
var (
	// ErrReference: the image reference or the platform cannot be understood.
	ErrReference = errors.New("invalid reference")
	// ErrNotFound: the mirror answered 404, which is its answer to all that it
	// does not serve, for whatever reason.
	ErrNotFound = errors.New("not served by the mirror")
	// ErrUnreachable: no answer from the mirror.
	ErrUnreachable = errors.New("mirror does not answer")
	// ErrDigest: the bytes are not those that the digest or size names.
	ErrDigest = errors.New("content does not match its digest")
)

// mismatch describes wrong bytes.
func mismatch(want, got digest.Digest) error {
	return fmt.Errorf("%w: want %s, got %s", ErrDigest, want, got)
}
