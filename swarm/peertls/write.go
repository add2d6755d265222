package peertls

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	publicMode = 0o644
	secretMode = 0o600
	// dirMode of a directory made here: nobody else has business in it.
	dirMode = 0o700
)

// file is one file to be written.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// WriteCA writes ca.crt, ca.key and gossip.key into dir, which is made if
// need be. Existing files are replaced only with force; otherwise nothing is
// written and the error wraps [fs.ErrExist]. Each file appears whole or not at
// all.
func WriteCA(dir string, ca *CA, force bool) error {
	key, err := encodeKey(ca.key)
	if err != nil {
		return fmt.Errorf("write authority: %w", err)
	}
	err = writeFiles(dir, force, []file{
		{CAKeyFile, secretMode, key},
		{GossipFile, secretMode, formatGossipKeys(ca.gossip...)},
		{CAFile, publicMode, encodeCert(ca.Cert)},
	})
	if err != nil {
		return fmt.Errorf("write authority: %w", err)
	}
	return nil
}

// WriteNode writes a node's credentials directory: ca.crt, tls.crt, tls.key
// and gossip.key. The rules of [WriteCA] apply. A running node takes over what
// force replaces; between two of the files it keeps its previous set, since
// they do not fit together.
func WriteNode(dir string, n *Node, force bool) error {
	key, err := encodeKey(n.key)
	if err != nil {
		return fmt.Errorf("write node certificate: %w", err)
	}
	err = writeFiles(dir, force, []file{
		{CAFile, publicMode, encodeCert(n.ca)},
		{GossipFile, secretMode, formatGossipKeys(n.gossip...)},
		{KeyFile, secretMode, key},
		{CertFile, publicMode, encodeCert(n.Cert)},
	})
	if err != nil {
		return fmt.Errorf("write node certificate: %w", err)
	}
	return nil
}

// writeFiles puts all files into place, or takes back those it made.
func writeFiles(dir string, force bool, list []file) (err error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	if !force {
		// The link below would notice as well, but only after having put
		// other files into place.
		for _, f := range list {
			if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil {
				return &fs.PathError{Op: "create", Path: filepath.Join(dir, f.name), Err: fs.ErrExist}
			}
		}
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, f := range list {
		path := filepath.Join(dir, f.name)
		if err := writeFile(path, f, force); err != nil {
			return err
		}
		if !force {
			made = append(made, path)
		}
	}
	return syncDir(dir)
}

// writeFile makes the file under another name and then gives it its own, so
// that no reader ever sees a part of it. Renaming replaces; linking fails on
// an existing file, whoever made it in the meantime.
func writeFile(path string, f file, force bool) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+f.name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(tmp.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, err = tmp.Write(f.data)
	err = errors.Join(err, tmp.Chmod(f.mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if force {
		return os.Rename(tmp.Name(), path)
	}
	return os.Link(tmp.Name(), path)
}

// syncDir makes the names durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
