package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// pull starts reading on all nodes and returns a function that waits for the
// ones named and fails the test if one of them failed.
func pull(t *testing.T, nodes []*testNode, d digest.Digest, want []byte, o Origin) func(...*testNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	results := map[*testNode]chan error{}
	for _, n := range nodes {
		c := make(chan error, 1)
		results[n] = c
		go func() {
			_, err := n.read(ctx, d, want, o)
			c <- err
		}()
	}
	return func(ns ...*testNode) {
		t.Helper()
		var errs []error
		for _, n := range ns {
			errs = append(errs, <-results[n])
		}
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
}

// until polls for a condition that is bound to come.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestPullerKilledInMidPull(t *testing.T) {
	c := newCluster(t, 4)
	data, d := randomBlob(t, 24<<20)
	o := &fakeOrigin{data: data, rate: 12 << 20}
	wait := pull(t, c.nodes, d, data, o)
	until(t, "half of the blob", func() bool { return o.copies() > 0.5 })
	victim := c.nodes[3]
	if members.Rank(d.String(), c.roster.live)[0].ID == victim.id {
		victim = c.nodes[2]
	}
	victim.kill()
	for _, n := range c.nodes {
		if n != victim {
			wait(n)
		}
	}
	if got := o.copies(); got > 1.3 {
		t.Errorf("%.2f copies left the registry after one of four nodes died", got)
	}
}

func TestTrackerKilledInMidPull(t *testing.T) {
	c := newCluster(t, 4)
	data, d := randomBlob(t, 24<<20)
	o := &fakeOrigin{data: data, rate: 12 << 20}
	wait := pull(t, c.nodes, d, data, o)
	until(t, "a third of the blob", func() bool { return o.copies() > 0.33 })
	first := members.Rank(d.String(), c.roster.live)[0].ID
	for _, n := range c.nodes {
		if n.id == first {
			n.kill()
		}
	}
	for _, n := range c.nodes {
		if n.id != first {
			wait(n)
		}
	}
	if got := o.copies(); got > 1.3 {
		t.Errorf("%.2f copies left the registry after the tracker died", got)
	}
}

// TestTrackerUnreachable has a member in the roster that nobody can reach:
// whatever it tracks must go through its standby.
func TestTrackerUnreachable(t *testing.T) {
	c := newCluster(t, 3)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := dead.Addr().String()
	dead.Close()
	c.roster.set(func(live []members.Member) []members.Member {
		return append(live, members.Member{ID: "dead", Control: addr, Wire: addr})
	})
	tracked := 0
	for i := 0; tracked < 2; i++ {
		data, d := randomBlob(t, 1<<20+i)
		if members.Rank(d.String(), c.roster.live)[0].ID != "dead" {
			continue
		}
		tracked++
		o := &fakeOrigin{data: data}
		readAll(t, c.nodes, d, data, o)
		if got := o.copies(); got > 1.01 {
			t.Errorf("%.2f copies left the registry, want 1", got)
		}
	}
}

// TestSilentHolder leases pieces on a member that accepts connections and says
// nothing.
func TestSilentHolder(t *testing.T) {
	c := newCluster(t, 2, func(c *Config) { c.Tracker.LeaseTimeout = 2 * time.Second })
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	data, d := randomBlob(t, 4<<20)
	for c.roster.live[0].ID == "" || strings.HasPrefix(members.Rank(d.String(), append(c.roster.live, members.Member{ID: "mute"}))[0].ID, "mute") {
		data, d = randomBlob(t, 4<<20)
	}
	c.roster.set(func(live []members.Member) []members.Member {
		return append(live, members.Member{ID: "mute", Control: mute.Addr().String(), Wire: mute.Addr().String()})
	})
	for _, n := range c.nodes {
		n.tracker.Announce("mute", []tracker.Item{{Digest: d, Size: int64(len(data))}}, nil)
	}
	start := time.Now()
	readAll(t, c.nodes, d, data, &fakeOrigin{data: data})
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("took %v with a silent holder", took)
	}
}

// TestWirePortBlocked has nodes that can talk to the tracker but not trade.
func TestWirePortBlocked(t *testing.T) {
	c := newCluster(t, 3)
	c.roster.set(func(live []members.Member) []members.Member {
		for i := range live {
			live[i].Wire = "127.0.0.1:1"
		}
		return live
	})
	data, d := randomBlob(t, 8<<20)
	o := &fakeOrigin{data: data}
	readAll(t, c.nodes, d, data, o)
	helped := 0.0
	for _, n := range c.nodes {
		helped += testutil.ToFloat64(n.met.fallbacks.WithLabelValues(helpPeers))
	}
	if helped == 0 {
		t.Error("no fallback was counted")
	}
}

func TestOriginFailsForGood(t *testing.T) {
	c := newCluster(t, 2)
	data, d := randomBlob(t, 8<<20)
	o := &fakeOrigin{data: data}
	o.fail.Store(true)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := c.nodes[0].read(ctx, d, data, o)
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %v to fail", took)
	}
	// The next attempt, when the registry is back, succeeds at once.
	o.fail.Store(false)
	readAll(t, c.nodes, d, data, o)
}

func TestOriginCutOffInMidPullWithHolder(t *testing.T) {
	c := newCluster(t, 3)
	data, d := randomBlob(t, 16<<20)
	o := &fakeOrigin{data: data}
	readAll(t, c.nodes[:1], d, data, o)
	o.fail.Store(true)
	readAll(t, c.nodes[1:], d, data, o)
}

// TestLyingVoucher has an origin that gives one node wrong bytes: the node
// vouches for them in good faith. Nobody may finish a wrong blob, everybody
// must get the right one, and the voucher is not believed any more.
func TestLyingVoucher(t *testing.T) {
	c := newCluster(t, 3)
	data, d := randomBlob(t, 12<<20)
	good := &fakeOrigin{data: data, rate: 24 << 20}
	bad := &fakeOrigin{data: data, rate: 24 << 20}
	var lies atomic.Int64
	bad.corrupt = func(off int64, p []byte) {
		// Once, in the first lease that it gets.
		if len(p) > 0 && lies.CompareAndSwap(0, 1) {
			p[0] ^= 0xff
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		o := Origin(good)
		if i == 0 {
			o = bad
		}
		wg.Go(func() {
			for range 20 {
				_, err := n.read(ctx, d, data, o)
				if err == nil {
					return
				}
				// A reader never finishes with wrong bytes: read compares. A
				// cut is what containerd sees, and comes back after.
				var wrong *chunker.DigestError
				if strings.Contains(err.Error(), "wrong bytes") || !errors.As(err, &wrong) && !errors.Is(err, chunker.ErrAborted) {
					t.Log(err)
				}
			}
			t.Errorf("%s never got the blob", n.id)
		})
	}
	wg.Wait()
	if lies.Load() == 0 {
		t.Fatal("the origin did not lie: the test shows nothing")
	}
	if !c.nodes[1].suspect(c.nodes[0].id) && !c.nodes[2].suspect(c.nodes[0].id) {
		t.Error("nobody suspects the node that vouched for wrong bytes")
	}
	for _, n := range c.nodes {
		if n.suspect(n.id) || n.suspect(c.nodes[1].id) || n.suspect(c.nodes[2].id) {
			t.Errorf("%s suspects an innocent node", n.id)
		}
	}
	for _, n := range c.nodes {
		r, err := n.Open(ctx, d)
		if err != nil {
			t.Errorf("%s: %v", n.id, err)
			continue
		}
		h := digest.SHA256.Digester()
		_, _ = io.Copy(h.Hash(), io.NewSectionReader(r, 0, r.Size()))
		if h.Digest() != d {
			t.Errorf("%s keeps wrong bytes as the whole blob", n.id)
		}
		r.Close()
	}
}

// TestCorruptHolder has a holder that serves wrong bytes over HTTP.
func TestCorruptHolder(t *testing.T) {
	c := newCluster(t, 2)
	data, d := randomBlob(t, 6<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte(nil), data...)
	bad[1<<20] ^= 1
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathBlobs+"{digest}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(bad)))
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	c.roster.set(func(live []members.Member) []members.Member {
		return append(live, members.Member{ID: "evil", Control: l.Addr().String(), Wire: l.Addr().String()})
	})
	for _, n := range c.nodes {
		n.tracker.Announce("evil", []tracker.Item{{Digest: d, Size: int64(len(data))}}, nil)
	}
	o := &fakeOrigin{data: data}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 10 {
		if _, err = c.nodes[0].read(ctx, d, data, o); err == nil {
			break
		}
		if strings.Contains(err.Error(), "wrong bytes") {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatalf("the blob never came: %v", err)
	}
	if !c.nodes[0].suspect("evil") {
		t.Error("the holder of wrong bytes is not suspected")
	}
}

func TestAbandonedDownloadEnds(t *testing.T) {
	c := newCluster(t, 1)
	data, d := randomBlob(t, 64<<20)
	o := &fakeOrigin{data: data, rate: 4 << 20}
	ctx, cancel := context.WithCancel(context.Background())
	n := c.nodes[0]
	dl, err := n.Fetch(ctx, Request{Digest: d, Size: int64(len(data)), Origin: o})
	if err != nil {
		t.Fatal(err)
	}
	r := dl.NewReader(ctx, 0, 1<<20)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	dl.Close()
	cancel()
	until(t, "the end of a download that nobody reads", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.downloads) == 0
	})
	// What came is kept for the next attempt.
	before := o.sent.Load()
	o.rate = 0
	readAll(t, c.nodes, d, data, o)
	if again := o.sent.Load() - before; again > int64(len(data))-(1<<20) {
		t.Errorf("%d bytes were fetched again of %d, want what came before reused", again, len(data))
	}
}

func TestControlPlaneRefusesNonsense(t *testing.T) {
	c := newCluster(t, 1)
	base := "http://" + c.roster.live[0].Control
	for name, tt := range map[string]struct {
		method, path, body string
		want               int
	}{
		"digest with a path":   {"GET", pathBlobs + "sha256:..%2f..%2fetc", "", 400},
		"unknown blob":         {"GET", pathBlobs + digest.FromString("x").String(), "", 404},
		"bad offset":           {"GET", pathHolders + digest.FromString("x").String() + "?off=x&n=1", "", 400},
		"no length":            {"GET", pathHolders + digest.FromString("x").String() + "?off=1", "", 400},
		"not json":             {"POST", pathAnnounce, "{", 400},
		"bad digest announced": {"POST", pathAnnounce, `{"added":[{"digest":"x","size":1}]}`, 400},
		"negative size":        {"POST", pathAnnounce, `{"added":[{"digest":"` + digest.FromString("x").String() + `","size":-1}]}`, 400},
		"too long":             {"POST", pathAnnounce, `{"removed":["` + strings.Repeat("x", maxBody) + `"]}`, 400},
		"no hello":             {"POST", pathTrack, "{}\n", 400},
		"another's name":       {"POST", pathTrack, `{"hello":{"v":1,"node":"b","digest":"` + digest.FromString("x").String() + `"}}` + "\n", 400},
		"tag without name":     {"POST", pathLookup, "{}", 400},
		"bad tag digest":       {"POST", pathPublish, `{"ref":"x","res":{"digest":"y"}}`, 400},
		"tag of the future":    {"POST", pathReferences, `{"refs":[{"ref":"x","age":-1,"digest":"` + digest.FromString("x").String() + `"}]}`, 400},
		"reference to nothing": {"POST", pathReferences, `{"refs":[{"ref":"x"}]}`, 400},
		"control characters":   {"POST", pathReferences, `{"refs":[{"ref":"x\u0000","digest":"` + digest.FromString("x").String() + `"}]}`, 400},
		"endless reference":    {"POST", pathReferences, `{"refs":[{"ref":"` + strings.Repeat("x", 1025) + `","digest":"` + digest.FromString("x").String() + `"}]}`, 400},
		"endless media type":   {"POST", pathReferences, `{"refs":[{"ref":"x","mediaType":"` + strings.Repeat("x", 256) + `","digest":"` + digest.FromString("x").String() + `"}]}`, 400},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(tt.method, base+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(nodeHeader, "a")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tt.want {
				t.Errorf("status %d, want %d", resp.StatusCode, tt.want)
			}
		})
	}
}

func TestResolveAsksUpstreamOnce(t *testing.T) {
	c := newCluster(t, 5, func(c *Config) { c.TagTTL = 500 * time.Millisecond })
	want := Descriptor{MediaType: "m", Digest: digest.FromString("v1"), Size: 3}
	var asked atomic.Int64
	up := func(context.Context) (Descriptor, error) {
		asked.Add(1)
		time.Sleep(50 * time.Millisecond)
		return want, nil
	}
	all := func(stale bool, up func(context.Context) (Descriptor, error)) {
		t.Helper()
		var wg sync.WaitGroup
		for _, n := range c.nodes {
			wg.Go(func() {
				got, last, err := n.Resolve(context.Background(), "r/x:latest", up)
				if err != nil || got != want || last.IsZero() == stale {
					t.Errorf("%s: %+v of %v, want it stale: %t: %v", n.id, got, last, stale, err)
				}
				if age := time.Since(last); stale && (age < 600*time.Millisecond || age > time.Minute) {
					t.Errorf("%s: an answer of %s ago", n.id, age)
				}
			})
		}
		wg.Wait()
	}
	all(false, up)
	if asked.Load() != 1 {
		t.Errorf("upstream was asked %d times by %d nodes at once, want once", asked.Load(), len(c.nodes))
	}
	time.Sleep(600 * time.Millisecond) // the TTL is over
	want.Digest = digest.FromString("v2")
	all(false, up)
	time.Sleep(600 * time.Millisecond)
	down := func(context.Context) (Descriptor, error) {
		return Descriptor{}, fmt.Errorf("registry: %w", ErrUnavailable)
	}
	c.add(func(c *Config) { c.TagTTL = 500 * time.Millisecond }) // has never seen the tag
	all(true, down)
	// A tag that upstream says is gone is gone.
	if _, _, err := c.nodes[0].Resolve(context.Background(), "r/x:latest", func(context.Context) (Descriptor, error) {
		return Descriptor{}, ErrNotFound
	}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v for a deleted tag, want ErrNotFound", err)
	}
}
