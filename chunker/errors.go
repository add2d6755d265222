package chunker

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
)

// ErrAborted is what readers of a blob get when its owner gave up without
// saying why.
var ErrAborted = errors.New("blob aborted")

// What TakePiece refuses.
var (
	ErrWrongPiece = errors.New("piece does not match its published sum")
	ErrNoSum      = errors.New("sum of the piece is not known")
)

// errClosed is what the methods of a closed store say.
var errClosed = fmt.Errorf("piece store: %w", os.ErrClosed)

// NoSpaceError says that a blob does not fit, before anything was written.
type NoSpaceError struct {
	// Need is the blob's size; Free is what could be had, in bytes, after
	// eviction of everything unused.
	Need, Free int64
	// Limit names what is exhausted: "cache size", "disk" or
	// "inodes".
	Limit string
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("no space for a blob of %d bytes: %s leaves %d", e.Need, e.Limit, max(e.Free, 0))
}

// ConflictError says that a piece has another sum than the one at hand.
type ConflictError struct {
	Piece     int
	Have, Got Sum
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("piece %d: sum %s contradicts %s", e.Piece, e.Got, e.Have)
}

// DigestError says that a whole blob is not what was asked for.
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("blob is %s, want %s", e.Got, e.Want)
}
