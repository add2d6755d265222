package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

// retryMin and retryMax bound the pause between attempts to reach containerd.
// An attempt costs a system call, and a restart of containerd takes 1 s.
const retryMin, retryMax = 250 * time.Millisecond, 4 * time.Second

// Run follows containerd until ctx ends, through all its absences, and tells
// onChange what appeared and what vanished. onChange is called by one goroutine
// at a time and must not wait for long. Run always returns nil; it may be called
// once.
func (s *Store) Run(ctx context.Context, onChange OnChange) error {
	defer s.setReady(false)
	pause, silent := retryMin, false
	for ctx.Err() == nil {
		err := s.follow(ctx, onChange)
		if ctx.Err() != nil {
			break
		}
		if s.Ready() { // until now
			s.setReady(false)
			pause, silent = retryMin, false
		}
		log := s.cfg.Log.Debug()
		if !silent { // once for each absence
			log, silent = s.cfg.Log.Warn(), true
		}
		log.Err(err).Str("socket", s.cfg.socket()).Dur("retry_in", pause).
			Msg("not connected to containerd: what it pulls now is shared once it is back")
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
		}
		pause = min(2*pause, retryMax)
	}
	return nil
}

func (s *Store) setReady(up bool) {
	s.ready.Store(up)
	if up {
		s.met.up.Set(1)
	} else {
		s.met.up.Set(0)
	}
}

// follow is the life of one connection.
func (s *Store) follow(ctx context.Context, onChange OnChange) error {
	s.daemon.retry()
	f := &follower{Store: s, root: s.cfg.Root, onChange: onChange, hints: make(chan hint, 64), agenda: newAgenda(s.pace, time.Now())}
	listening, broken := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	var listener sync.WaitGroup
	defer func() {
		cancel()
		listener.Wait()
		f.unwatch()
	}()
	// Events come first and the walk after, so that what happens meanwhile is
	// told by the one or the other.
	listener.Go(func() { broken <- s.daemon.listen(ctx, listening, f.hints) })
	select {
	case <-listening:
	case err := <-broken:
		return err
	}
	if f.root == "" {
		var err error
		if f.root, err = s.daemon.root(ctx); err != nil {
			return err
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(f.agenda.next()))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			return err
		case h := <-f.hints:
			f.take(h, time.Now())
		case k := <-s.doubts:
			f.take(hint{kind: hintDigest, key: k, probe: true}, time.Now())
		case <-timer.C:
			if err := f.work(ctx); err != nil {
				return err
			}
		}
	}
}

// follower is what one connection needs. One goroutine has it.
type follower struct {
	*Store
	// root of the content store as files; "" if it is not known.
	root     string
	onChange OnChange
	hints    chan hint
	agenda   *agenda
	// namespaces as of the last question for them.
	namespaces []string
	// stopWatch is nil while no files are watched.
	stopWatch func()
	// told that there are no files, or no watch.
	toldFiles, toldWatch bool
}

func (f *follower) take(h hint, now time.Time) {
	switch h.kind {
	case hintDigest:
		f.agenda.look(h.key, h.namespace, h.probe, now)
	case hintUnnamed:
		f.agenda.compare(now)
	case hintCollected:
		if f.stopWatch == nil { // the files tell better
			f.agenda.collected(now)
		}
	case hintNone:
	}
}

// work does what is due, and reports what it finds even if it fails half-way.
func (f *follower) work(ctx context.Context) (err error) {
	var c change
	defer func() {
		held, bytes, damaged := f.index.counts()
		f.met.blobs.Set(float64(held))
		f.met.bytes.Set(float64(bytes))
		f.met.damaged.Set(float64(damaged))
		c.report(f.onChange)
		if err == nil && !f.Ready() {
			f.setReady(true)
			f.cfg.Log.Info().Str("socket", f.cfg.socket()).Int("blobs", held).Int64("bytes", bytes).
				Bool("as_files", f.files.Load() != nil).Bool("watched", f.stopWatch != nil).
				Msg("following containerd's content")
		}
	}()
	checks, walk := f.agenda.due(time.Now())
	if len(checks) == 0 && !walk {
		return nil
	}
	f.attach()
	if f.namespaces, err = f.daemon.listNamespaces(ctx); err != nil {
		return err
	}
	for k, ch := range checks {
		if err := f.ask(ctx, k, ch, &c); err != nil {
			return err
		}
	}
	if !walk {
		return nil
	}
	began := time.Now() // the checks took their time, too
	if err := f.reconcile(ctx, &c); err != nil {
		return err
	}
	f.agenda.walked(began, time.Now())
	if !f.Ready() {
		// Once more, for what happened after the walk and before the daemon
		// had taken in the subscription.
		f.agenda.followUp = time.Now().Add(f.pace.followUp)
	}
	return nil
}

// ask finds out about one blob.
func (f *follower) ask(ctx context.Context, k key, ch check, c *change) error {
	known, isKnown := f.index.known(k)
	tried := map[string]bool{"": true}
	for _, ns := range append([]string{ch.namespace, known.namespace}, f.namespaces...) {
		if tried[ns] {
			continue
		}
		tried[ns] = true
		size, err := f.daemon.info(ctx, ns, k)
		if err != nil {
			return err
		}
		if size > 0 {
			return f.put(ctx, k, size, ns, ch.probe, c)
		}
	}
	if isKnown {
		f.index.remove(k, c)
	}
	if files := f.files.Load(); files != nil {
		if err := files.check(k, 0); err == nil || errors.Is(err, errDamaged) {
			f.agenda.again(k, ch, time.Now()) // a file without metadata
		}
	}
	return nil
}

// reconcile compares everything.
func (f *follower) reconcile(ctx context.Context, c *change) error {
	f.index.begin()
	referred := map[key]bool{}
	for _, ns := range f.namespaces {
		var failed error
		err := f.daemon.walk(ctx, ns, func(k key, size int64, refs []key) {
			if failed == nil {
				failed = f.put(ctx, k, size, ns, false, c)
			}
			for _, r := range refs {
				referred[r], referred[k] = true, true
			}
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	f.index.sweep(referred, c)
	f.met.walks.Inc()
	return nil
}

// put takes in a blob that the metadata names, if its bytes are there: what can
// be seen as a file is always looked at, what cannot only with reason. That all
// others are files is a reason, once.
func (f *follower) put(ctx context.Context, k key, size int64, namespace string, probe bool, c *change) error {
	known, isKnown := f.index.known(k)
	e := entry{size: size, namespace: namespace}
	looked := errNotSeen
	if files := f.files.Load(); files != nil {
		looked = files.check(k, size)
		probe = probe || !isKnown && errors.Is(looked, fs.ErrNotExist)
	}
	switch {
	case looked == nil:
	case errors.Is(looked, errDamaged):
		e.damaged = true
	case probe || known.damaged:
		var last [1]byte
		looked = f.daemon.read(ctx, namespace, k, last[:], size-1)
		if looked != nil && !errors.Is(looked, swarm.ErrNotFound) {
			return looked
		}
		e.damaged = looked != nil
	}
	if e.damaged && !known.damaged {
		f.cfg.Log.Warn().Err(looked).Str("digest", k.digest().String()).Int64("size", size).Str("namespace", namespace).
			Msg("blob in containerd's content store is damaged, not serving it: containerd will notice too when it needs it")
	}
	f.index.put(k, e, c)
	return nil
}

// errNotSeen says that a blob was not looked at as a file.
var errNotSeen = errors.New("containerd's files cannot be seen")

// attach opens containerd's directory and watches it, unless that is done. The
// directory of a new containerd appears with its first blob only.
func (f *follower) attach() {
	if old := f.files.Load(); old != nil {
		if f.stopWatch == nil && !f.toldWatch {
			f.watch(old) // opened for an earlier connection
		}
		if !old.stale() {
			return
		}
		f.unwatch()
		f.files.Store(nil)
		_ = old.close() // it was only read
	}
	if f.root == "" {
		f.tellFiles(errors.New("containerd does not tell its root"))
		return
	}
	files, err := openFiles(f.root)
	if err != nil {
		f.tellFiles(err)
		return
	}
	f.toldFiles, f.toldWatch = false, false
	f.files.Store(files)
	f.watch(files)
}

// watch starts a watch. What came before it is for the walk that follows.
func (f *follower) watch(files *files) {
	stop, err := files.watch(f.hints)
	if err != nil {
		f.toldWatch = true
		f.cfg.Log.Warn().Err(err).Dur("reconcile", f.cfg.Reconcile).
			Msg("cannot watch containerd's files: collected content may be noticed late")
		return
	}
	f.stopWatch = stop
	f.agenda.compare(time.Now())
}

func (f *follower) unwatch() {
	if f.stopWatch != nil {
		f.stopWatch()
		f.stopWatch = nil
	}
}

func (f *follower) tellFiles(err error) {
	if f.toldFiles {
		return
	}
	f.toldFiles = true
	f.cfg.Log.Info().Err(fmt.Errorf("read containerd's blobs as files: %w", err)).Str("root", f.root).
		Msg("reading containerd's blobs through its socket: give this process read access to its root to save CPU")
}
