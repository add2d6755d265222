//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestCold is the product in one test: four nodes pull an image that none of
// them has, about one copy leaves the registry, and after that the registry is
// not needed.
func TestCold(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 4, Rate: rate, RegistryRate: rate})
	img := push(t, l, "cold", 300e6, 4)
	m := startMeter(t, l)
	took := pull(t, img.Ref, l.Nodes()...)
	copies := m.copies(t, img)
	slowest, bound := slices.Max(took), rate.Time(img.Size())
	t.Logf("%.3f copies left the registry; slowest %v, %.2f × size ÷ rate", copies,
		slowest.Round(time.Millisecond), float64(slowest)/float64(bound))
	if copies > 1.08 {
		t.Errorf("%.3f copies left the registry, want at most 1.08", copies)
	}

	if err := l.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	fifth, err := l.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("digest without registry", func(t *testing.T) {
		pull(t, img.ByDigest(), fifth)
	})
	if err := fifth.Remove(t.Context(), img.ByDigest()); err != nil {
		t.Fatal(err)
	}
	t.Run("tag without registry", func(t *testing.T) {
		pull(t, img.Ref, fifth)
	})
}

// TestSmall: what costs nothing directly must cost nothing through Shoal.
func TestSmall(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 1, Rate: rate, RegistryRate: rate})
	n := l.Node(0)

	t.Run("head", func(t *testing.T) {
		img := push(t, l, "head", 5*mib, 1)
		pull(t, img.Ref, n)
		client := n.Client()
		defer client.CloseIdleConnections()
		url := n.Mirror() + "/v2/" + img.Repository + "/manifests/" + img.Manifest.Digest.String() + "?ns=" + lab.RegistryHost
		const rounds = 51
		took := make([]time.Duration, rounds)
		for i := range took {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			resp, err := client.Do(req)
			took[i] = time.Since(start)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Docker-Content-Digest"); resp.StatusCode != http.StatusOK || got != img.Manifest.Digest.String() {
				t.Fatalf("HEAD: %s, digest %q, want that of the image", resp.Status, got)
			}
		}
		slices.Sort(took)
		t.Logf("HEAD of a known manifest: median %v, slowest %v", took[rounds/2], took[rounds-1])
		if took[rounds/2] > 5*time.Millisecond {
			t.Errorf("median %v, want at most 5 ms", took[rounds/2])
		}
	})

	t.Run("cold", func(t *testing.T) {
		// Modes take turns, so that a noisy machine hits both.
		const rounds = 5
		took := map[string][]time.Duration{}
		for i := range rounds {
			for _, mode := range []struct {
				name    string
				mirrors []string
			}{{"direct", nil}, {"shoal", []string{n.Mirror()}}} {
				img, err := l.Push(t.Context(), lab.ImageSpec{
					Repository: fmt.Sprintf("e2e/small-%s-%d", mode.name, i), Tag: "v1", Size: 10e6, Layers: 1,
					Seed: uint64(2*i + len(mode.mirrors)),
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := n.SetMirrors(mode.mirrors...); err != nil {
					t.Fatal(err)
				}
				d, err := n.Pull(t.Context(), img.Ref)
				if err != nil {
					t.Fatal(err)
				}
				took[mode.name] = append(took[mode.name], d)
			}
		}
		direct, shoal := median(took["direct"]), median(took["shoal"])
		t.Logf("10 MB on one node: direct %v, Shoal %v, %.2f ×", direct, shoal, float64(shoal)/float64(direct))
		if shoal > direct*5/4 && !raceEnabled {
			t.Errorf("Shoal took %v, want at most 1.25 × %v", shoal, direct)
		}
		if got := metric(t, n, `shoal_swarm_received_bytes_total{source="origin"}`); got < rounds*10e6 {
			t.Errorf("Shoal brought %.0f bytes from the registry, want all of its %d images", got, rounds)
		}
	})
}

func median(ds []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(ds))
	return s[len(s)/2]
}
