// Command demo shows on one machine, without root, what Shoal is for: it
// starts a real registry and several nodes on loopback, with certificates and
// mutual TLS as in production, pushes an image of incompressible layers, pulls
// it cold through all the nodes at the same time, verifies every digest, and
// counts at the registry's sockets how many bytes left it.
//
// Nodes and pulls are processes of the shoal binary; only the registry
// (github.com/distribution/distribution, unmodified) runs inside this one, so
// that its traffic can be counted. Everything lives in one temporary
// directory, which is removed at the end, also after Ctrl-C.
//
// Run it with `make demo`. It exits with status 1 if a digest is wrong, a pull
// fails, or more than 1.05 copies of the image left the registry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxCopies is how many copies of the image may leave the registry: the one
// that has to, and 5 % for headers, manifests and ranges fetched twice.
const maxCopies = 1.05

type options struct {
	shoal  string
	nodes  int
	size   int64 // MiB
	layers int
	dir    string
	keep   bool
}

func main() {
	var o options
	flag.StringVar(&o.shoal, "shoal", "bin/shoal", "the shoal `binary`")
	flag.IntVar(&o.nodes, "nodes", 8, "how many nodes")
	flag.Int64Var(&o.size, "size", 512, "size of the image in `MiB`")
	flag.IntVar(&o.layers, "layers", 4, "layers of the image")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`directory` for everything; needs space for nodes + 1 images")
	flag.BoolVar(&o.keep, "keep", false, "keep the files, to look at the nodes' logs")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		// What then failed, failed because of that.
		fmt.Fprintln(os.Stderr, "demo: interrupted, cleaned up")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	if o.nodes < 1 || o.size < 1 || o.layers < 1 {
		return errors.New("nodes, size and layers must be positive")
	}
	if o.shoal, err = filepath.Abs(o.shoal); err != nil {
		return fmt.Errorf("find the shoal binary: %w", err)
	}
	if _, err := os.Stat(o.shoal); err != nil {
		return fmt.Errorf("find the shoal binary: %w: run 'make build'", err)
	}
	size := o.size << 20
	if err := checkSpace(o.dir, int64(o.nodes+1)*size); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "shoal-demo-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() {
		if o.keep {
			fmt.Fprintf(out, "kept %s\n", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	reg, err := startRegistry(filepath.Join(dir, "registry"))
	if err != nil {
		return err
	}
	defer reg.close()
	fmt.Fprintf(out, "registry on %s\n", reg.host)
	img, err := push(ctx, reg.host, size, o.layers)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "pushed %s: %d layers, %d MiB\n", img.ref, o.layers, img.bytes>>20)

	cl := &cluster{shoal: o.shoal, dir: dir, registry: reg.host}
	defer cl.stop()
	if err := cl.start(ctx, o.nodes); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d nodes see each other, mutual TLS on\n", o.nodes)

	fmt.Fprintf(out, "pulling cold through %d mirrors at once\n\n", o.nodes)
	before, began := reg.sent.Load(), time.Now()
	rows, err := pullAll(ctx, cl, img)
	if err != nil {
		return errors.Join(err, cl.logs())
	}
	took := time.Since(began)
	copies := float64(reg.sent.Load()-before) / float64(img.bytes)
	if err := table(out, rows); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%d pulls of %d MiB in %.1f s, every digest verified\n", o.nodes, img.bytes>>20, took.Seconds())
	fmt.Fprintf(out, "copies that left the registry: %.3f (direct pulls: %d)\n", copies, o.nodes)
	if copies > maxCopies {
		return errors.Join(fmt.Errorf("%.3f copies left the registry, want at most %.2f", copies, maxCopies), cl.logs())
	}
	return nil
}

// pullAll pulls the image through all mirrors at the same time.
func pullAll(ctx context.Context, cl *cluster, img image) ([]row, error) {
	rows := make([]row, len(cl.nodes))
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range cl.nodes {
		g.Go(func() error {
			res, err := cl.pull(ctx, n, img)
			if err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			rows[i] = row{node: n.name, seconds: res.Seconds}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, n := range cl.nodes {
		var err error
		if rows[i].origin, rows[i].peers, err = n.sources(context.WithoutCancel(ctx)); err != nil {
			return nil, fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return rows, nil
}

// checkSpace fails early rather than with eight full stores.
func checkSpace(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look for space in %s: %w", dir, err)
	}
	need += need / 20
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free and the demo needs %d: choose another place with TMPDIR, or fewer nodes", dir, free>>20, need>>20)
	}
	return nil
}
