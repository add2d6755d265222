package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/shoal-dev/shoal/cmd/internal/pull"
)

// pullCmd pulls through a mirror.
type pullCmd struct {
	Image    string        `arg:"" help:"Image reference, for instance alpine:3.22 or registry.example.com:5000/app@sha256:..."`
	Mirror   string        `default:"http://127.0.0.1:6500" placeholder:"URL" help:"The mirror to pull through. Default: ${default}."`
	Platform string        `env:"-" placeholder:"OS/ARCH" help:"Platform to pull of an image that has several, os/arch[/variant], or 'all'. Default: this machine's."`
	Output   string        `env:"-" enum:"text,json" default:"text" placeholder:"FORMAT" help:"Form of the result: ${enum}. Default: ${default}."`
	Dir      string        `env:"-" placeholder:"DIR" help:"Write the image there as an OCI layout. Default: verify it and throw it away."`
	Parallel int           `env:"-" default:"3" placeholder:"N" help:"Blobs in flight at one time. Default: ${default}, like containerd."`
	Stall    time.Duration `env:"-" default:"2m" placeholder:"TIME" help:"How long a response may be silent before it is tried again. Default: ${default}."`
}

// Help implements kong.HelpProvider.
func (*pullCmd) Help() string {
	return `Shows what containerd would get from the mirror, without containerd. The digest of every manifest, config and layer is verified; a body that is cut is taken up where it ended. There is no fallback to the registry.

Progress goes to standard error, the result to standard output.

Exit status: 0 if all is verified, 1 on other failures, 2 for a mistake in the arguments, 3 if the mirror does not serve something (404), 4 if the mirror does not answer, 5 if content does not match its digest, 130 if interrupted.`
}

// pullError gives each kind of failure its exit status.
type pullError struct{ err error }

func (e pullError) Error() string { return e.err.Error() }
func (e pullError) Unwrap() error { return e.err }

func (e pullError) exitStatus() int {
	for _, k := range []struct {
		kind   error
		status int
	}{
		{pull.ErrReference, exitUsage},
		{pull.ErrDigest, exitDigest},
		{pull.ErrNotFound, exitNotServed},
		{pull.ErrUnreachable, exitUnreachable},
		{context.Canceled, exitInterrupted},
	} {
		if errors.Is(e.err, k.kind) {
			return k.status
		}
	}
	return exitFailure
}

// Run implements the command.
func (c *pullCmd) Run(ctx context.Context, s std) error {
	if c.Parallel < 1 || c.Parallel > 64 {
		return usageError{fmt.Errorf("--parallel: %d: want 1 to 64", c.Parallel)}
	}
	var progress pull.Progress = &lines{w: s.err}
	if isTerminal(s.err) {
		progress = &bar{w: s.err}
	}
	r, err := pull.Image(ctx, c.Image, pull.Options{
		Mirror: c.Mirror, Platform: c.Platform, Dir: c.Dir,
		Parallel: c.Parallel, Stall: c.Stall, Progress: progress,
	})
	if f, ok := progress.(interface{ end() }); ok {
		f.end()
	}
	if err != nil {
		return pullError{err}
	}
	if c.Output == "json" {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(s.out, "%s\n%s verified: %d blobs, %s in %.1f s, %s/s\n", r.Image, r.Digest,
		len(r.Blobs), humanBytes(r.Bytes), r.Seconds, humanBytes(int64(float64(r.Bytes)/max(r.Seconds, 1e-3))))
	return nil
}

// lines tells progress in lines, for logs and pipes.
type lines struct {
	w    io.Writer
	mu   sync.Mutex
	n, i int
}

// Begin implements pull.Progress.
func (l *lines) Begin(blobs int, bytes int64) {
	l.n = blobs
	fmt.Fprintf(l.w, "pulling %d blobs, %s\n", blobs, humanBytes(bytes))
}

// Received implements pull.Progress.
func (*lines) Received(int64) {}

// Finished implements pull.Progress.
func (l *lines) Finished(b pull.Blob) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.i++
	resumed := ""
	if b.Resumed > 0 {
		resumed = fmt.Sprintf(", resumed %d times", b.Resumed)
	}
	fmt.Fprintf(l.w, "%d/%d %s %s in %.1f s%s\n", l.i, l.n, b.Digest, humanBytes(b.Size), b.Seconds, resumed)
}

// bar shows progress on a terminal.
type bar struct {
	w io.Writer
	b *progressbar.ProgressBar
}

// Begin implements pull.Progress.
func (p *bar) Begin(blobs int, bytes int64) {
	p.b = progressbar.NewOptions64(bytes,
		progressbar.OptionSetWriter(p.w),
		progressbar.OptionSetDescription(fmt.Sprintf("pulling %d blobs", blobs)),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
	)
}

// Received implements pull.Progress.
func (p *bar) Received(n int64) { _ = p.b.Add64(n) }

// Finished implements pull.Progress.
func (*bar) Finished(pull.Blob) {}

// end takes the bar off the screen, also after a failure half way.
func (p *bar) end() {
	if p.b != nil {
		_ = p.b.Clear()
	}
}

// humanBytes is a number of bytes for people, in binary units.
func humanBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/(1<<10), 0
	for v >= 1023.95 && u < len(units)-1 {
		v, u = v/(1<<10), u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}
