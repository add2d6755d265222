package hosts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// fileName is what containerd reads.
	fileName = "hosts.toml"
	// backupSuffix is appended to it for the file as it was before.
	backupSuffix = ".shoal-backup"
	// madeFile is in each directory that was made here.
	madeFile = ".shoal"
	madeText = "This directory was made by 'shoal configure'. 'shoal unconfigure' removes it.\n"

	// Who can pull may see where from.
	fileMode = 0o644
	dirMode  = 0o755

	// maxFile bounds a file, in bytes. Real ones have a few hundred.
	maxFile = 1 << 20
)

// file is a file as it was read.
type file struct {
	target string // path behind symbolic links
	text   []byte
	info   fs.FileInfo // nil if there is none
}

// read reads a file. That there is none is not an error.
func read(path string) (file, error) {
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return file{}, fmt.Errorf("read %s: a symbolic link that leads nowhere", path)
		}
		return file{target: path}, nil
	}
	if err != nil {
		return file{}, err
	}
	info, err := os.Stat(target)
	if err != nil {
		return file{}, err
	}
	// Opening a pipe would wait for ever.
	if !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("read %s: not a regular file", path)
	}
	f, err := os.Open(target)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return file{}, err
	}
	if len(text) > maxFile {
		return file{}, fmt.Errorf("read %s: larger than %d bytes", path, maxFile)
	}
	return file{target, text, info}, nil
}

// write replaces a file at one instant, and returns when it is on disk. Mode and
// owner are those of like, if there is one.
func write(path string, text []byte, like fs.FileInfo) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // of which there is more to tell than of these
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(text); err != nil {
		return err
	}
	mode := fs.FileMode(fileMode)
	if like != nil {
		mode = like.Mode().Perm()
		// First the owner: giving a file away clears bits of its mode.
		if owner, ok := like.Sys().(*syscall.Stat_t); ok {
			if err := tmp.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDir makes a directory, and marks it as made here. It tells whether it did.
func makeDir(dir string) (made bool, err error) {
	err = os.Mkdir(dir, dirMode)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, write(filepath.Join(dir, madeFile), []byte(madeText), nil)
}

// removeDir removes a directory that was made here, if nothing is in it.
func removeDir(dir string) error {
	if err := os.Remove(filepath.Join(dir, madeFile)); err != nil {
		return ignore(err, fs.ErrNotExist) // somebody else's, or gone
	}
	// Linux says the one or the other.
	return ignore(ignore(os.Remove(dir), unix.ENOTEMPTY), unix.EEXIST)
}

// lock waits until no other process changes the directory; closing the file
// unlocks it. The lock is on the directory itself, so that it leaves nothing.
func lock(dir string) (*os.File, error) {
	for {
		d, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
		}
		// The other process may have removed it, and a third made it anew.
		mine, err := d.Stat()
		if err == nil {
			var now fs.FileInfo
			if now, err = os.Stat(dir); err == nil && os.SameFile(mine, now) {
				return d, nil
			}
		}
		d.Close()
		if err != nil {
			return nil, err
		}
	}
}

// ignore returns err unless it is of the given kind.
func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
