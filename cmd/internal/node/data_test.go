package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
)

func TestRemoveData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shoal")
	if err := RemoveData(dir); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	s, err := chunker.Open(chunker.Options{Dir: storeDir(dir), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveData(dir); err == nil {
		t.Error("removed while it is used")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	alien := filepath.Join(dir, "alien")
	if err := os.WriteFile(alien, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveData(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(alien); err != nil {
		t.Errorf("somebody else's file: %v", err)
	}
	if _, err := os.Stat(storeDir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the store: %v", err)
	}
	if err := os.Remove(alien); err != nil {
		t.Fatal(err)
	}
	if err := RemoveData(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}
