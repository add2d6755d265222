package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// edit is what to do to one file.
type edit struct {
	path   string
	old    file
	base   []byte // the old text without the block
	text   []byte // the new text
	remove bool   // remove the file

	backup  bool // keep the old file
	cleanup bool // remove the backup, if the file is what it says
}

// at adds the file to an error of its text.
func (e edit) at(err error) error { return fmt.Errorf("%s: %w", e.path, err) }

// apply plans an edit for each name and, if all can be planned, does them. If
// one fails, those before it are undone.
func apply(names []string, plan func(string) (edit, error)) ([]Change, error) {
	var edits []edit
	var failed []error
	for _, name := range names {
		e, err := plan(name)
		if err != nil {
			failed = append(failed, err)
		}
		edits = append(edits, e)
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	var changes []Change
	var undo []func() error
	for _, e := range edits {
		c, err := e.do(&undo)
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
			return nil, err
		}
		if c.Outcome != "" {
			changes = append(changes, c)
		}
	}
	return changes, errors.Join(cleanup(edits, changes)...)
}

// do does the edit, and adds the reverse of each step to undo.
func (e edit) do(undo *[]func() error) (Change, error) {
	c := Change{Path: e.path, Outcome: Unchanged}
	switch {
	case e.old.info == nil && e.text == nil:
		return Change{}, nil // no file, and none wanted
	case e.remove:
		c.Outcome = Removed
		*undo = append(*undo, func() error { return write(e.old.target, e.old.text, e.old.info) })
		return c, os.Remove(e.path)
	case e.old.info != nil && bytes.Equal(e.text, e.old.text):
		return c, nil
	}
	c.Outcome = Written
	if err := e.prepare(undo); err != nil {
		return c, err
	}
	*undo = append(*undo, func() error {
		if e.old.info == nil {
			return ignore(os.Remove(e.old.target), fs.ErrNotExist)
		}
		return write(e.old.target, e.old.text, e.old.info)
	})
	return c, write(e.old.target, e.text, e.old.info)
}

// prepare makes the directory and the backup.
func (e edit) prepare(undo *[]func() error) error {
	dir := filepath.Dir(e.path)
	made, err := makeDir(dir)
	if made {
		*undo = append(*undo, func() error { return removeDir(dir) })
	}
	if err != nil || !e.backup {
		return err
	}
	*undo = append(*undo, func() error { return ignore(os.Remove(e.path+backupSuffix), fs.ErrNotExist) })
	return write(e.path+backupSuffix, e.old.text, e.old.info)
}

// cleanup removes the backups that have become superfluous, and notes the
// others in the changes.
func cleanup(edits []edit, changes []Change) (failed []error) {
	for _, e := range edits {
		if !e.cleanup {
			continue
		}
		backup := e.path + backupSuffix
		saved, err := read(backup)
		switch {
		case err != nil:
			failed = append(failed, err)
		case saved.info == nil:
		case e.old.info != nil && bytes.Equal(saved.text, e.text):
			failed = append(failed, os.Remove(backup))
		default:
			for i := range changes {
				if changes[i].Path == e.path {
					changes[i].Backup = backup
				}
			}
		}
	}
	return failed
}
