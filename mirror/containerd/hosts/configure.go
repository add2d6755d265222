package hosts

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Default is the directory of all registries that have none.
const Default = "_default"

// Config says what is to be configured.
type Config struct {
	// Dir is containerd's config_path. It is made if need be; its parent has to
	// be there.
	Dir string
	// Mirror is the URL of the mirror: http, a loopback address and a port.
	Mirror string
	// Registries are names as images have them, or [Default]. None: Default and
	// all that have a directory.
	Registries []string
}

// Validate finds the mistakes in it.
func (c Config) Validate() error {
	u, err := url.Parse(c.Mirror)
	if err != nil || u.Scheme != "http" || u.Port() == "" || u.String() != "http://"+u.Host {
		return fmt.Errorf("mirror %q: want http://127.0.0.1:PORT", c.Mirror)
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && !ip.IsLoopback() {
		return fmt.Errorf("mirror %q: not a loopback address, so containerd's proxy settings could lead past it", c.Mirror)
	}
	for _, r := range c.Registries {
		if !isRegistry(r) {
			return fmt.Errorf("registry %q: want host[:port] as images have it, or %s for all; patterns cannot be directories", r, Default)
		}
	}
	return nil
}

// isRegistry tells whether a name is one that containerd would look for.
func isRegistry(name string) bool {
	if name == Default {
		return true
	}
	ref, err := reference.ParseNormalizedNamed(name + "/image")
	return err == nil && reference.Domain(ref) == name
}

// Change is what was done to a file.
type Change struct {
	Path    string
	Outcome Outcome
	// Backup is left, for the file is not what it was before.
	Backup string
}

// Outcome is what became of a file.
type Outcome string

// The outcomes.
const (
	Unchanged Outcome = "unchanged"
	Written   Outcome = "written"
	Removed   Outcome = "removed"
)

// Configure makes the mirror the first host of the registries. If it fails,
// nothing has changed.
func Configure(c Config) (_ []Change, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	made, err := makeDir(c.Dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: is containerd configured elsewhere?", err)
		}
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	defer func() {
		if err != nil {
			if made {
				err = errors.Join(err, removeDir(c.Dir))
			}
			err = fmt.Errorf("configure containerd: %w", err)
		}
	}()
	l, err := lock(c.Dir)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	return apply(names, c.plan)
}

// names are the directories to be configured.
func (c Config) names() ([]string, error) {
	if len(c.Registries) == 0 {
		found, err := directories(c.Dir)
		if !slices.Contains(found, Default) {
			found = append(found, Default)
		}
		return found, err
	}
	var names []string
	for _, r := range c.Registries {
		names = append(names, directoryOf(c.Dir, r))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// portDir is how containerd also spells host:port, and looks for it first.
var portDir = regexp.MustCompile(`^(.+)_([0-9]+)_$`)

// registryOf is the registry of a directory.
func registryOf(dir string) string { return portDir.ReplaceAllString(dir, "$1:$2") }

// directoryOf is the name of the directory in which containerd finds the
// registry, or would.
func directoryOf(dir, registry string) string {
	if host, port, err := net.SplitHostPort(registry); err == nil {
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		other := host + "_" + port + "_"
		if _, err := os.Stat(filepath.Join(dir, other)); err == nil {
			return other
		}
	}
	return registry
}

// directories are the names of the registries that have a directory.
func directories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name())) // behind a link too
		if err == nil && info.IsDir() && isRegistry(registryOf(e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// plan says what to do to the file of a registry, without doing it.
func (c Config) plan(name string) (edit, error) {
	dir := filepath.Join(c.Dir, name)
	e := edit{path: filepath.Join(dir, fileName)}
	var err error
	if e.old, err = read(e.path); err != nil {
		return e, err
	}
	if e.old.info == nil && name != Default {
		if err := c.hides(dir); err != nil {
			return e, err
		}
	}
	b := block{mirror: c.Mirror}
	if e.base, err = remove(e.old.text); err != nil {
		return e, e.at(err)
	}
	if len(e.base) == 0 || carries(e.old.text) {
		if b.ca, b.client, err = certificates(dir); err != nil {
			return e, err
		}
	}
	if e.text, err = add(e.old.text, b); err != nil {
		return e, e.at(err)
	}
	e.backup = !bytes.Equal(e.text, e.old.text) && bytes.Equal(e.base, e.old.text) && e.old.info != nil
	return e, nil
}

// hides fails if making the directory would take from the registry what
// _default has for it.
func (c Config) hides(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	def := filepath.Join(c.Dir, Default)
	f, err := read(filepath.Join(def, fileName))
	if err != nil {
		return err
	}
	rest, err := remove(f.text)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.target, err)
	}
	ca, client, err := certificates(def)
	if err != nil {
		return err
	}
	if len(rest)+len(ca)+len(client) > 0 {
		return fmt.Errorf("make %s: it would hide %s, which serves this registry until now: configure %s, or make the directory yourself", dir, def, Default)
	}
	return nil
}

// carries tells whether the block in a text has what certificates finds, because
// the file was made here.
func carries(text []byte) bool {
	doc, err := parse(text)
	return err == nil && doc.carries
}

// certificates finds what containerd takes from the directory if there is no
// hosts.toml, in containerd's order.
func certificates(dir string) (ca []string, client [][]string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, ignore(err, fs.ErrNotExist)
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case e.IsDir():
		case strings.HasSuffix(name, ".crt"):
			ca = append(ca, name)
		case strings.HasSuffix(name, ".cert"):
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if _, err := os.Stat(filepath.Join(dir, key)); err != nil {
				key = name // containerd expects both in one file then
			}
			client = append(client, []string{name, key})
		}
	}
	return ca, client, nil
}

// Unconfigure takes the mirror out of all registries of a directory. Files and
// directories that [Configure] made are removed, unless somebody has put
// something into them. If it fails, nothing has changed.
func Unconfigure(dir string) (changes []Change, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("unconfigure containerd: %w", err)
		}
	}()
	l, err := lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer l.Close()
	names, err := directories(dir)
	if err != nil {
		return nil, err
	}
	changes, err = apply(names, func(name string) (edit, error) { return planRemoval(filepath.Join(dir, name)) })
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := removeDir(filepath.Join(dir, name)); err != nil {
			return changes, err
		}
	}
	return changes, removeDir(dir)
}

// planRemoval says what to do to the file in a directory, without doing it.
func planRemoval(dir string) (edit, error) {
	e := edit{path: filepath.Join(dir, fileName), cleanup: true}
	var err error
	if e.old, err = read(e.path); err != nil {
		return e, err
	}
	if e.base, err = remove(e.old.text); err != nil {
		return e, e.at(err)
	}
	e.text = e.base
	if e.old.info == nil || len(e.text) > 0 || bytes.Equal(e.text, e.old.text) {
		return e, nil
	}
	// Nothing remains: the file was made here, or it was empty.
	if _, err := os.Lstat(e.path + backupSuffix); errors.Is(err, fs.ErrNotExist) {
		e.remove = true
	}
	return e, nil
}
