package members

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// TestCluster: a dozen nodes that know one seed all come to see each other
// alike, with what each said about itself.
func TestCluster(t *testing.T) {
	t.Parallel()
	const n = 12
	var (
		nodes []*node
		want  []Member
	)
	for i := range n {
		c := config(fmt.Sprintf("node-%02d", i))
		c.ControlPort, c.WirePort = 1000+i, 2000+i
		c.Zone = []string{"", "zone a"}[i%2]
		if i > 0 {
			c.Join = []string{nodes[0].Addr()}
		}
		nodes = append(nodes, start(t, c))
		want = append(want, Member{
			ID: c.NodeID, Host: "127.0.0.1",
			Control: fmt.Sprintf("127.0.0.1:%d", 1000+i), Wire: fmt.Sprintf("127.0.0.1:%d", 2000+i),
			Zone: c.Zone, Version: 1, Born: nodes[i].Self().Born,
		})
		if want[i].Born == 0 {
			t.Errorf("%s does not know when it started", c.NodeID)
		}
	}
	for i, nd := range nodes {
		nd.until("all", func(live []Member) bool { return len(live) == n })
		if diff := cmp.Diff(want, nd.Live()); diff != "" {
			t.Errorf("node %d (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(want[i], nd.Self()); diff != "" {
			t.Errorf("node %d itself (-want +got):\n%s", i, diff)
		}
	}
	for _, nd := range nodes {
		if got, want := Rank("sha256:abc", nd.Live())[0].ID, Rank("sha256:abc", want)[0].ID; got != want {
			t.Errorf("%s ranks %s first, not %s", nd.Self().ID, got, want)
		}
	}
}

// TestLeave: who leaves is gone at once. No failure detector is involved: the
// probes here are too far apart.
func TestLeave(t *testing.T) {
	t.Parallel()
	calm := func(c Config) Config {
		c.hooks.tune = func(l *memberlist.Config) { l.ProbeInterval = time.Hour }
		return c
	}
	a := start(t, calm(config("a")))
	b := start(t, calm(config("b", a.Addr())))
	c := start(t, calm(config("c", a.Addr())))
	for _, n := range []*node{a, b, c} {
		n.sees("a", "b", "c")
	}
	c.stop()
	a.sees("a", "b")
	b.sees("a", "b")
	if diff := cmp.Diff([]string{"a", "b", "c"}, ids(c.Live())); diff != "" {
		t.Errorf("the leaver's own view (-want +got):\n%s", diff)
	}
}

// TestKill runs at the timing of production: a node that vanishes is noticed
// within seconds.
func TestKill(t *testing.T) {
	t.Parallel()
	a := start(t, config("a"))
	b := start(t, config("b", a.Addr()))
	c := start(t, config("c", a.Addr()))
	for _, n := range []*node{a, b, c} {
		n.sees("a", "b", "c")
	}
	begin := time.Now()
	c.kill()
	a.sees("a", "b")
	b.sees("a", "b")
	t.Logf("noticed after %s", time.Since(begin).Round(10*time.Millisecond))
}

// TestRestart: a node that died without a word and comes back elsewhere is a
// member at once, with its new address, while its former life is still
// believed alive; and the death of that one takes nothing away.
func TestRestart(t *testing.T) {
	t.Parallel()
	a := start(t, quick(config("a")))
	b := start(t, quick(config("b", a.Addr())))
	a.sees("a", "b")
	b.kill()
	conf := quick(config("b", a.Addr()))
	conf.ControlPort = 7777
	b = start(t, conf)
	a.until("the new b", func(live []Member) bool {
		return slices.Contains(live, b.Self())
	})
	if diff := cmp.Diff([]string{"a", "b"}, ids(a.Live())); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	a.until("the end of the former life", func([]Member) bool { return a.roster.count() == 2 })
	a.sees("a", "b")
}

// count is the number of instances.
func (r *roster) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.instances)
}

// TestRejoin: all joins fail at the start; the seed comes later, goes, and
// comes again as another process.
func TestRejoin(t *testing.T) {
	t.Parallel()
	addr := freePort(t)
	log := &lines{}
	conf := quick(config("a", addr))
	conf.Log = zerolog.New(log)
	a := start(t, conf)
	log.await(t, "no other member yet")               // the first round
	log.await(t, "some seeds could not be contacted") // a later one
	for range 2 {
		seed := quick(config("seed"))
		seed.BindAddr = addr
		b := start(t, seed)
		a.sees("a", "seed")
		b.sees("a", "seed")
		b.kill()
		a.sees("a")
	}
}

// freePort is an address on which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	m, err := New(config("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return m.Addr()
}

// TestNames: a name is resolved afresh each time, may have stale records, and
// may list the node itself.
func TestNames(t *testing.T) {
	t.Parallel()
	a := start(t, quick(config("a")))
	port := a.Addr()[strings.LastIndexByte(a.Addr(), ':')+1:]
	dns := &names{asked: make(chan string, 1)}

	conf := quick(config("b", "shoal.example:"+port))
	conf.BindAddr = "127.0.0.2:" + port
	conf.Resolver = dns
	b := start(t, conf)
	<-dns.asked // no record at all
	dns.set("shoal.example", "127.0.0.2", "127.0.0.9")
	<-dns.asked // itself and an address without a node
	<-dns.asked
	if diff := cmp.Diff([]string{"b"}, ids(b.Live())); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	dns.set("shoal.example", "127.0.0.2", "127.0.0.9", "127.0.0.1")
	b.sees("a", "b")
	a.sees("a", "b")

	// The seed is replaced by a node elsewhere.
	a.kill()
	b.sees("b")
	next := quick(config("c"))
	next.BindAddr = "127.0.0.3:" + port
	c := start(t, next)
	dns.set("shoal.example", "127.0.0.3")
	b.sees("b", "c")
	c.sees("b", "c")
}

// TestHeal: a split cluster, each half of which believes the other dead and
// has forgotten it, becomes one again although nobody is alone.
func TestHeal(t *testing.T) {
	t.Parallel()
	cut := newCut()
	var (
		nodes []*node
		addrs []string
	)
	for _, id := range []string{"a", "b", "c", "d"} {
		c := quick(config(id, addrs...))
		c.hooks.wrap = cut.wrap
		n := start(t, c)
		nodes, addrs = append(nodes, n), append(addrs, n.Addr())
	}
	for _, n := range nodes {
		n.sees("a", "b", "c", "d")
	}
	cut.between(addrs[:2], addrs[2:])
	for _, n := range nodes[:2] {
		n.sees("a", "b")
	}
	for _, n := range nodes[2:] {
		n.sees("c", "d")
	}
	cut.heal()
	for _, n := range nodes {
		n.sees("a", "b", "c", "d")
	}
}

// TestSetZone: what a node says anew about itself reaches the others.
func TestSetZone(t *testing.T) {
	t.Parallel()
	a := start(t, config("a"))
	b := start(t, config("b", a.Addr()))
	a.sees("a", "b")
	for _, zone := range []string{"west-1", ""} {
		if err := b.SetZone(zone); err != nil {
			t.Fatal(err)
		}
		if got := b.Self().Zone; got != zone {
			t.Errorf("own zone is %q", got)
		}
		a.until("zone "+zone, func(live []Member) bool { return live[1].Zone == zone })
	}
	if err := b.SetZone(strings.Repeat("z", 64)); err == nil {
		t.Error("a zone of 64 bytes was taken")
	}
	b.stop()
	if err := b.SetZone("x"); err == nil {
		t.Error("a node that left changed its zone")
	}
}

// TestNamesakes: two nodes with one id. All agree on the younger, and the
// older one complains.
func TestNamesakes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := func(c Config, d time.Duration) Config {
		c.Now = func() time.Time { return now.Add(d) }
		return c
	}
	a := start(t, at(config("a"), 0))
	log := &lines{}
	older := at(config("twin", a.Addr()), time.Second)
	older.ControlPort = 1
	older.Log = zerolog.New(log)
	x := start(t, older)
	a.sees("a", "twin")
	younger := at(config("twin", a.Addr()), 2*time.Second)
	younger.ControlPort = 2
	y := start(t, younger)
	isYounger := func(live []Member) bool { return len(live) == 2 && live[1].Control == "127.0.0.1:2" }
	a.until("the younger twin", isYounger)
	y.until("a", isYounger)
	log.await(t, "ids must be unique")
	if x.Live()[1] != x.Self() {
		t.Error("the older twin gave way in its own eyes")
	}
	y.stop()
	a.until("the older twin", func(live []Member) bool { return len(live) == 2 && live[1].Control == "127.0.0.1:1" })
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no cluster", func(c *Config) { c.Cluster = "" }, "cluster id"},
		{"bad cluster", func(c *Config) { c.Cluster = "a b" }, "cluster id"},
		{"no id", func(c *Config) { c.NodeID = "" }, "node id"},
		{"slash in id", func(c *Config) { c.NodeID = "a/b" }, "node id"},
		{"no key", func(c *Config) { c.SecretKey = nil }, "0 bytes"},
		{"short key", func(c *Config) { c.SecretKey = key[:16] }, "16 bytes"},
		{"key and insecure", func(c *Config) { c.Insecure = true }, "exclude"},
		{"no control port", func(c *Config) { c.ControlPort = 0 }, "control port"},
		{"wire port too high", func(c *Config) { c.WirePort = 65536 }, "wire port"},
		{"no bind address", func(c *Config) { c.BindAddr = "" }, "bind address"},
		{"bind to a name", func(c *Config) { c.BindAddr = "localhost:0" }, "not an IP"},
		{"bind port", func(c *Config) { c.BindAddr = "127.0.0.1:x" }, "out of range"},
		{"foreign bind address", func(c *Config) { c.BindAddr = "192.0.2.1:0" }, "listen for gossip"},
		{"long zone", func(c *Config) { c.Zone = strings.Repeat("z", 64) }, "zone"},
		{"seed without port", func(c *Config) { c.Join = []string{"host"} }, "no port"},
		{"seed with port 0", func(c *Config) { c.Join = []string{"host:0"} }, "out of range"},
		{"empty seed", func(c *Config) { c.Join = []string{""} }, "malformed"},
		{"seed is a URL", func(c *Config) { c.Join = []string{"http://host:1"} }, "seed"},
		{"advertise unspecified", func(c *Config) { c.AdvertiseAddr = "0.0.0.0" }, "no address"},
		{"advertise unknown name", func(c *Config) { c.AdvertiseAddr = "nowhere" }, "no addresses"},
		{"advertise link-local", func(c *Config) { c.AdvertiseAddr = "fe80::1%eth0" }, "interface"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config("a")
			c.Resolver = &names{}
			tc.change(&c)
			m, err := New(c)
			if err == nil {
				_ = m.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	p := pace{}.withDefaults()
	for _, tc := range []struct {
		alone    bool
		round    int
		random   float64
		min, max time.Duration
	}{
		{true, 0, 0, 375 * time.Millisecond, 375 * time.Millisecond},
		{true, 0, 0.999, 600 * time.Millisecond, 625 * time.Millisecond},
		{true, 1, 0.5, time.Second, time.Second},
		{true, 100000, 0.5, 10 * time.Second, 10 * time.Second},
		{false, 0, 0.5, 5 * time.Second, 5 * time.Second},
		{false, 100, 0.5, time.Minute, time.Minute},
		{false, 100, 0, 45 * time.Second, 45 * time.Second},
	} {
		if d := p.delay(tc.alone, tc.round, tc.random); d < tc.min || d > tc.max {
			t.Errorf("alone %v, round %d, random %v: %s", tc.alone, tc.round, tc.random, d)
		}
	}
}

// TestStopWhileJoining: a node that is busy with a black-holed seed stops at
// once.
func TestStopWhileJoining(t *testing.T) {
	t.Parallel()
	// A listener whose backlog is never served swallows the exchange of state.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := start(t, config("a", l.Addr().String()))
	conn, err := l.Accept() // the attempt is under way
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	a.stop()
	if d := time.Since(begin); d > 5*time.Second { // the library alone would take 10 s
		t.Errorf("stopping took %s", d)
	}
}

// TestManyRecords: of a name with many addresses only a few are contacted.
func TestManyRecords(t *testing.T) {
	t.Parallel()
	var (
		nodes []*node
		list  []string
	)
	for i := range 8 {
		c := config("n" + strconv.Itoa(i))
		n := create(t, c)
		nodes, list = append(nodes, n), append(list, n.Addr())
	}
	x := create(t, config("x", list...))
	if err := x.contact(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Attempts run a few at a time, so the wanted number may be passed by
	// those under way.
	if got := testutil.ToFloat64(x.metrics.joins.WithLabelValues("ok")); got < wantContacts || got >= wantContacts+parallel {
		t.Errorf("contacted %v of %d", got, len(nodes))
	}
}
