package hosts

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"
)

// settle is how long after a change the files are looked at: those who write
// several, or one in several steps, have finished then, and two programs that
// undo each other's work do so twice a second at most. Meanwhile pulls go past
// the mirror, and work.
const settle = 500 * time.Millisecond

// Watch configures, and does so again when the files have changed and at every
// interval, until the context ends. The kernel tells of changes at once, but not of
// those behind symbolic links, not on every file system, and not if its watches are
// used up; so the interval is what can be relied upon.
//
// Each registry is on its own here: a file with a mistake is left alone and told of
// once, and the others go on being repaired.
func Watch(ctx context.Context, c Config, interval time.Duration, log zerolog.Logger) error {
	if err := c.Validate(); err != nil {
		return err
	}
	w := &watch{config: c, log: log, told: map[string]string{}}
	w.run(ctx, interval, w.repair)
	return nil
}

// WatchRemoval is the reverse of [Watch]: it takes out of a directory what
// [Configure] has put in, and does so again when somebody puts it back, until the
// context ends.
func WatchRemoval(ctx context.Context, dir string, interval time.Duration, log zerolog.Logger) {
	w := &watch{config: Config{Dir: dir}, log: log, told: map[string]string{}}
	w.run(ctx, interval, func() {
		changes, err := Unconfigure(dir)
		w.tell("", err)
		for _, change := range changes {
			if change.Outcome != Unchanged {
				w.log.Info().Str("file", change.Path).Msg("restored")
			}
		}
	})
}

// run calls step at the beginning, after each change and at every interval, until
// the context ends.
func (w *watch) run(ctx context.Context, interval time.Duration, step func()) {
	if n, err := fsnotify.NewWatcher(); err != nil {
		w.log.Warn().Err(err).Dur("interval", interval).Msg("cannot be told of changes, looking for them instead")
	} else {
		defer n.Close()
		w.notify, w.events, w.errors = n, n.Events, n.Errors
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		step()
		if w.follow() {
			continue // a change just before the watch began was not told
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-w.events:
			w.settle(ctx)
		case err := <-w.errors:
			w.log.Debug().Err(err).Msg("events may be missing")
		}
	}
}

// watch is one call of Watch or WatchRemoval.
type watch struct {
	config Config
	log    zerolog.Logger
	told   map[string]string // the last error of each registry

	// All nil without a watcher: a nil channel is silent.
	notify *fsnotify.Watcher
	events <-chan fsnotify.Event
	errors <-chan error
}

// settle waits until changes have settled, and forgets what it was told of them.
func (w *watch) settle(ctx context.Context) {
	end := time.NewTimer(settle)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-w.events:
		}
	}
}

// repair configures each registry.
func (w *watch) repair() {
	names := w.config.Registries
	if len(names) == 0 {
		found, _ := directories(w.config.Dir) // which Configure makes, or says why not
		names = append(found, Default)
	}
	for _, name := range names {
		c := w.config
		c.Registries = []string{registryOf(name)}
		changes, err := Configure(c)
		w.tell(name, err)
		for _, change := range changes {
			if change.Outcome != Unchanged {
				w.log.Info().Str("file", change.Path).Msg("configured")
			}
		}
	}
}

// tell logs an error once, not at each attempt. No name: it is of the directory.
func (w *watch) tell(name string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && w.told[name] != text {
		event := w.log.Warn().Err(err)
		if name != "" {
			event.Str("registry", name)
		}
		event.Msg("left as it is")
	}
	w.told[name] = text
}

// follow asks to be told of changes in all directories, and tells whether there
// are new ones among them.
func (w *watch) follow() bool {
	if w.notify == nil {
		return false
	}
	before := len(w.notify.WatchList())
	found, _ := directories(w.config.Dir)
	for _, name := range append(found, "") {
		dir := filepath.Join(w.config.Dir, name)
		if err := w.notify.Add(dir); err != nil {
			w.log.Debug().Err(err).Str("directory", dir).Msg("not watched")
		}
	}
	return len(w.notify.WatchList()) > before
}
