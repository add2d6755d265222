//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
	"github.com/shoal-dev/shoal/swarm/members"
)

// Troubles are had in the middle of a pull of this size and rate, which takes
// eight seconds at least.
const (
	troubleRate = 100 * lab.Mbit
	troubleSize = 100e6
)

// midway waits until node i of a pull under way has received two fifths.
func midway(t *testing.T, n *lab.Node, from lab.Traffic) {
	t.Helper()
	waitReceived(t, n, from, troubleSize*2/5)
}

// TestTrouble: whatever happens in mid-pull, the image lands on every node that
// is still there, and containers run from it.
func TestTrouble(t *testing.T) {
	for _, c := range []struct {
		name string
		// strike is called midway with a bystander that is not the layer's
		// tracker, and the tracker.
		strike func(t *testing.T, l *lab.Lab, bystander, tracker *lab.Node)
		// lost: the victim's own pull cannot land.
		lost func(bystander, tracker *lab.Node) *lab.Node
		// copies of the image that may leave the registry.
		copies float64
	}{
		{
			name: "peer killed",
			// One copy for the swarm. Its own containerd goes to the registry
			// for what it has not got in order: three fifths and a bit.
			strike: func(t *testing.T, _ *lab.Lab, bystander, _ *lab.Node) { kill(t, bystander) },
			copies: 2.05,
		},
		{
			name:   "tracker killed",
			strike: func(t *testing.T, _ *lab.Lab, _, tracker *lab.Node) { kill(t, tracker) },
			copies: 2.05,
		},
		{
			name:   "peer silent",
			strike: func(t *testing.T, _ *lab.Lab, bystander, _ *lab.Node) { disconnect(t, bystander) },
			lost:   func(bystander, _ *lab.Node) *lab.Node { return bystander },
			copies: 1.5,
		},
		{
			name:   "tracker silent",
			strike: func(t *testing.T, _ *lab.Lab, _, tracker *lab.Node) { disconnect(t, tracker) },
			lost:   func(_, tracker *lab.Node) *lab.Node { return tracker },
			copies: 1.5,
		},
		{
			name: "registry cut off and back",
			strike: func(t *testing.T, l *lab.Lab, _, _ *lab.Node) {
				if err := l.CutRegistry(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second) // the outage
				if err := l.RestoreRegistry(); err != nil {
					t.Fatal(err)
				}
			},
			copies: 2,
		},
		{
			name: "registry crashed and back",
			strike: func(t *testing.T, l *lab.Lab, _, _ *lab.Node) {
				if err := l.Registry.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := l.Registry.Start(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			copies: 2,
		},
		{
			name: "peer stands still",
			// As on a suspended machine, for longer than a lease may. Others get
			// what it had leases on, and what only it had.
			strike: func(t *testing.T, _ *lab.Lab, bystander, _ *lab.Node) {
				stop := bystander.Shoal().Signal(syscall.SIGSTOP)
				time.Sleep(7 * time.Second)
				if err := errors.Join(stop, bystander.Shoal().Signal(syscall.SIGCONT)); err != nil {
					t.Fatal(err)
				}
			},
			copies: 1.2,
		},
		{
			name: "shoal restarted",
			strike: func(t *testing.T, _ *lab.Lab, bystander, _ *lab.Node) {
				kill(t, bystander)
				if err := bystander.StartShoal(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			copies: 2.05,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, lab.Config{Nodes: 4, Rate: troubleRate, RegistryRate: troubleRate})
			img := push(t, l, "trouble", troubleSize, 1)
			tracker, others := trackerOf(t, l, img.Layers[0].Digest)
			bystander := others[0]
			landing := l.Nodes()
			if c.lost != nil {
				landing = without(landing, c.lost(bystander, tracker))
				startPull(t, img.Ref, c.lost(bystander, tracker)) // ends with the test
			}
			m, from := startMeter(t, l), traffic(t, others[1])
			p := startPull(t, img.Ref, landing...)
			midway(t, others[1], from)
			c.strike(t, l, bystander, tracker)
			p.wait(t)
			copies := m.copies(t, img)
			t.Logf("%.2f copies left the registry", copies)
			if copies > c.copies {
				t.Errorf("%.2f copies left the registry, want at most %.2f", copies, c.copies)
			}
		})
	}
}

// TestWithoutShoal: a node whose Shoal does not run pulls as if there were none.
func TestWithoutShoal(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 1, Rate: rate, RegistryRate: rate})
	n := l.Node(0)
	if err := n.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	img := push(t, l, "without", 40*mib, 2)
	took := pull(t, img.Ref, n)[0]
	if limit := 3 * rate.Time(img.Size()); took > limit {
		t.Errorf("took %v, want less than %v", took, limit)
	}
}

// TestRogueHolder: a node with a good certificate serves wrong bytes, as a bad
// disk would. Nobody completes a wrong layer, and it is noticed.
func TestRogueHolder(t *testing.T) {
	corrupted := func(t *testing.T, args ...string) (*lab.Lab, lab.Image) {
		l := newLab(t, lab.Config{Nodes: 4, Rate: troubleRate, RegistryRate: troubleRate, ShoalArgs: args})
		img := push(t, l, "rogue", troubleSize/2, 1)
		layer, rogue := img.Layers[0], l.Node(0)
		pull(t, img.Ref, rogue)
		eventually(t, "the rogue to seed from containerd's store", func() bool {
			return metric(t, rogue, "shoal_swarm_held_blobs") >= 3 && metric(t, rogue, "shoal_cache_bytes") == 0
		})
		corrupt(t, rogue.ContentPath(layer.Digest), layer.Size/2)
		return l, img
	}
	noticed := func(t *testing.T, nodes []*lab.Node) {
		var caught float64
		for _, n := range nodes {
			caught += metric(t, n, "shoal_swarm_corrupt_total")
		}
		if caught == 0 {
			t.Error("no node counted the wrong bytes")
		}
	}
	t.Run("held until verified", func(t *testing.T) {
		l, img := corrupted(t, "--hold-until-verified")
		honest := nodes(l, 1, 2, 3)
		pull(t, img.Ref, honest...)
		noticed(t, honest)
	})
	// Without holding back, the first reader has seen a wrong byte by the
	// time it is noticed, and cannot be helped but by cutting it off.
	t.Run("streamed", func(t *testing.T) {
		l, img := corrupted(t)
		honest := nodes(l, 1, 2, 3)
		var readers errgroup.Group
		for _, n := range honest {
			readers.Go(func() error {
				if got, err := fetch(t.Context(), n, img, img.Layers[0].Digest); err == nil && got != img.Layers[0].Digest {
					return fmt.Errorf("%s completed a blob of digest %s", n.Name, got)
				}
				return nil
			})
		}
		if err := readers.Wait(); err != nil {
			t.Error(err)
		}
		noticed(t, honest)
		recovers(t, img, honest...)
	})
}

// TestRogueRegistry: the registry serves wrong bytes. The mirror never
// completes a wrong blob, and serves the right one once the registry is well.
func TestRogueRegistry(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 2, Rate: troubleRate, RegistryRate: troubleRate})
	img := push(t, l, "lying", 20*mib, 1)
	layer := img.Layers[0]
	restore := corrupt(t, l.Registry.BlobPath(layer.Digest), layer.Size/2)
	for _, n := range l.Nodes() {
		if got, err := fetch(t.Context(), n, img, layer.Digest); err == nil {
			t.Errorf("%s completed a blob of digest %s", n.Name, got)
		}
	}
	restore()
	recovers(t, img, l.Nodes()...)
}

// recovers waits until the mirrors serve an image's layer after they had wrong
// bytes of it. They leave it to the registry for a while: 404.
func recovers(t *testing.T, img lab.Image, nodes ...*lab.Node) {
	t.Helper()
	want := img.Layers[0].Digest
	eventually(t, "the mirrors to serve the blob", func() bool {
		for _, n := range nodes {
			got, err := fetch(t.Context(), n, img, want)
			switch {
			case err == nil && got != want:
				t.Fatalf("%s completed a blob of digest %s", n.Name, got)
			case err != nil:
				return false
			}
		}
		return true
	})
}

// trackerOf finds the node that is a blob's tracker, and the others.
func trackerOf(t *testing.T, l *lab.Lab, d digest.Digest) (*lab.Node, []*lab.Node) {
	t.Helper()
	byName := map[string]*lab.Node{}
	var live []members.Member
	for _, n := range l.Nodes() {
		byName[n.Name] = n
		live = append(live, members.Member{ID: n.Name})
	}
	var ranked []*lab.Node
	for _, m := range members.Rank(d.String(), live) {
		ranked = append(ranked, byName[m.ID])
	}
	return ranked[0], ranked[1:]
}

func without(nodes []*lab.Node, not *lab.Node) []*lab.Node {
	var rest []*lab.Node
	for _, n := range nodes {
		if n != not {
			rest = append(rest, n)
		}
	}
	return rest
}

func kill(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.Shoal().Kill(); err != nil {
		t.Fatal(err)
	}
}

func disconnect(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.Disconnect(); err != nil {
		t.Fatal(err)
	}
}

// corrupt inverts some bytes of a file and returns the undoing.
func corrupt(t *testing.T, path string, at int64) func() {
	t.Helper()
	const length = 1000
	invert := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := make([]byte, length)
		if _, err := f.ReadAt(p, at); err != nil {
			t.Fatal(err)
		}
		for i := range p {
			p[i] = ^p[i]
		}
		if _, err := f.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	invert()
	return invert
}

// fetch asks a node's mirror for a blob as containerd would and returns the
// digest of a complete answer.
func fetch(ctx context.Context, n *lab.Node, img lab.Image, d digest.Digest) (digest.Digest, error) {
	client := n.Client()
	defer client.CloseIdleConnections()
	url := n.Mirror() + "/v2/" + img.Repository + "/blobs/" + d.String() + "?ns=" + lab.RegistryHost
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(sum.Hash(), resp.Body); err != nil {
		return "", err
	}
	return sum.Digest(), nil
}
