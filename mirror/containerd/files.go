package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// contentPlugin is the folder of the content store below containerd's own
// root, since 1.0.
const contentPlugin = "io.containerd.content.v1.content"

// blobsPath is where the blobs lie below the content store's root.
var blobsPath = filepath.Join("blobs", "sha256")

// errDamaged says that a file is not what the metadata says.
var errDamaged = errors.New("not a regular file of the size that containerd knows")

// files is containerd's blobs/sha256 directory, open. It is safe for
// concurrent use; what is opened after close fails.
type files struct {
	path string
	dir  *os.File
}

// openFiles opens the directory of blobs below root, which is the content
// store's root or containerd's. Symbolic links may lead to root, where
// administrators like to put them, and not out of it.
func openFiles(root string) (*files, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("open containerd's blobs: root %q is not an absolute path", root)
	}
	var first error
	for _, root := range []string{root, filepath.Join(root, contentPlugin)} {
		dir, err := openWithin(root, blobsPath)
		if err == nil {
			return &files{path: filepath.Join(root, blobsPath), dir: dir}, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("open containerd's blobs: %w", first)
}

// openWithin opens a directory that lies below root, and finds out whether its
// files can be seen.
func openWithin(root, path string) (*os.File, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	dir, err := r.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	// Reading a directory takes one permission, reaching what is in it
	// another.
	if err := unix.Faccessat(int(dir.Fd()), ".", unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "access", Path: dir.Name(), Err: err}, dir.Close())
	}
	return dir, nil
}

func (f *files) close() error { return f.dir.Close() }

// stale says that the directory is no longer the one at its path: containerd's
// data was wiped, or mounted over.
func (f *files) stale() bool {
	ours, err := f.dir.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(f.path)
	return err != nil || !os.SameFile(ours, there)
}

// open opens a blob's file, which must be a regular one of that size: no link,
// no device, no pipe that blocks. The error wraps fs.ErrNotExist if there is
// none and errDamaged if it is something else.
func (f *files) open(k key, size int64) (*blobFile, error) {
	file, err := f.openat(k, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		err = fmt.Errorf("open %s: %w", file.Name(), errDamaged)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &blobFile{File: file, size: size}, nil
}

// check says whether open would find the blob, without opening it.
func (f *files) check(k key, size int64) error {
	var st unix.Stat_t
	err := f.control("stat", k, func(dir int, name string) error {
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size) {
		err = fmt.Errorf("stat %s: %w", filepath.Join(f.path, k.hex()), errDamaged)
	}
	return err
}

func (f *files) openat(k key, flags int) (*os.File, error) {
	fd := -1
	err := f.control("open", k, func(dir int, name string) (err error) {
		for {
			fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return nil, errors.Join(errDamaged, err) // a link, a socket
	case err != nil:
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(f.path, k.hex())), nil
}

// control calls fn with the directory's descriptor, which stays open
// meanwhile.
func (f *files) control(op string, k key, fn func(dir int, name string) error) error {
	raw, err := f.dir.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = fn(int(fd), k.hex()) }); err != nil {
		return err
	}
	if failed != nil {
		return &fs.PathError{Op: op, Path: filepath.Join(f.path, k.hex()), Err: failed}
	}
	return nil
}

// blobFile is an open blob.
type blobFile struct {
	*os.File
	size int64
}

// Size implements swarm.Reader.
func (b *blobFile) Size() int64 { return b.size }

// watch passes on a hint for every file that comes or goes, until stop is
// called, which waits for its end. A kernel that has no watches left is
// reported; the rest works without.
func (f *files) watch(hints chan<- hint) (stop func(), err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch containerd's blobs: %w", err)
	}
	if err := w.Add(f.path); err != nil {
		return nil, errors.Join(fmt.Errorf("watch containerd's blobs: %w", err), w.Close())
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			var h hint
			select {
			case e := <-w.Events:
				if !e.Has(fsnotify.Create) && !e.Has(fsnotify.Remove) && !e.Has(fsnotify.Rename) && !e.Has(fsnotify.Write) {
					continue
				}
				k, ok := keyOfHex(filepath.Base(e.Name))
				if !ok {
					continue
				}
				// A file that goes is collected, and its metadata went before; or
				// somebody has deleted it, which only a look at its bytes tells.
				h = hint{kind: hintDigest, key: k, probe: e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)}
			case err := <-w.Errors:
				if err == nil { // closed
					return
				}
				h = hint{kind: hintUnnamed} // events were lost
			case <-quit:
				return
			}
			select {
			case hints <- h:
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		_ = w.Close() // nothing depends on it
	}, nil
}
