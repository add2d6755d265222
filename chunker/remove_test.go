package chunker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	if err := Remove(dir); err != nil {
		t.Errorf("no store: %v", err)
	}
	s := openStore(t, dir)
	data, d := testBlob(1 << 20)
	b := acquire(t, s, d, len(data))
	writePiece(t, b, data, 0)
	if err := Remove(dir); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("in use: %v", err)
	}
	if _, err := os.Stat(s.dataPath(d)); err != nil {
		t.Errorf("in use: %v", err)
	}
	b.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	alien := filepath.Join(dir, "alien")
	if err := os.WriteFile(alien, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("beside somebody else's file: %v, %v", entries, err)
	}
	if err := os.Remove(alien); err != nil {
		t.Fatal(err)
	}
	if err := openStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the removal: %v", err)
	}
}
