package chunker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove removes the store at dir, and dir too unless something else is in it.
// That there is no store is not an error; that a process uses it is.
func Remove(dir string) error {
	lock, err := lockStore("remove", dir, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	// The lock last: while it is there, a removal that failed can be repeated.
	for _, name := range []string{"partial", "complete", "lock"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove piece store: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrExist) { // ENOTEMPTY is ErrExist
		return fmt.Errorf("remove piece store: %w", err)
	}
	return nil
}
