package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/chunker"
)

// storeDir is where the piece store is in a data directory.
func storeDir(dataDir string) string { return filepath.Join(dataDir, "blobs") }

// RemoveData removes what a node keeps in its data directory, and the directory
// unless something else is in it or it is a file system of its own. It fails
// while a node uses it.
func RemoveData(dir string) error {
	if err := chunker.Remove(storeDir(dir)); err != nil {
		return err
	}
	err := os.Remove(dir)
	for _, stays := range []error{fs.ErrNotExist, fs.ErrExist, unix.EBUSY} { // ENOTEMPTY is ErrExist
		if errors.Is(err, stays) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove data directory: %w", err)
	}
	return nil
}
