package hosts

import "path/filepath"

// State is what containerd makes of a registry's directory.
type State struct {
	// Registry is host[:port], or [Default].
	Registry string
	// Path of the file, which need not exist.
	Path string
	// Exists tells whether there is a file, and Err why it is of no use, with
	// the line.
	Exists bool
	Err    error
	// Hosts are the URLs in the order in which containerd asks them.
	Hosts []string
	// Lacking are those of Hosts that containerd does not use for all of a pull,
	// since "pull" or "resolve" is not among their capabilities.
	Lacking []string
}

// At is the position of a URL, without a slash at its end, in Hosts, -1 if it is
// not there.
func (s State) At(url string) int { return position(s.Hosts, url) }

// Inspect tells what is configured below a config_path: one State for each
// directory of a registry, [Default] among them if there is one. It changes nothing.
func Inspect(dir string) ([]State, error) {
	names, err := directories(dir)
	if err != nil {
		return nil, err
	}
	var all []State
	for _, name := range names {
		s := State{Registry: registryOf(name), Path: filepath.Join(dir, name, fileName)}
		f, err := read(s.Path)
		switch {
		case err != nil:
			s.Exists, s.Err = true, err
		case f.info != nil:
			s.Exists = true
			doc, err := parse(f.text)
			if err != nil {
				s.Err = err
				break
			}
			s.Hosts = doc.urls()
			for _, url := range s.Hosts {
				if !doc.serves(url) {
					s.Lacking = append(s.Lacking, url)
				}
			}
		}
		all = append(all, s)
	}
	return all, nil
}
