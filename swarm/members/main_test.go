package members

import (
	"bytes"
	"context"
	"flag"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// TestMain looks for leaks. What the library has in flight when it is shut
// down ends by itself, but only with the time-outs of probes.
func TestMain(m *testing.M) {
	// The tests spend their time waiting for each other's timers. A -parallel
	// on the command line comes later and counts.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode.func3"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).handleIndirectPing.func2"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).pushPullTrigger"),
	)
}

// patience bounds every wait of the tests.
const patience = 40 * time.Second

// key is the test cluster's.
var key = bytes.Repeat([]byte{42}, KeyLength)

// node is a member under test.
type node struct {
	*Members
	t    *testing.T
	stop func() // ends Run and waits for it
}

// config of a member on loopback that listens on a free port.
func config(id string, join ...string) Config {
	return Config{
		Cluster: "lab", NodeID: id, BindAddr: "127.0.0.1:0",
		ControlPort: 6501, WirePort: 6502, Join: join,
		SecretKey: key, Log: zerolog.Nop(), Registerer: prometheus.NewPedanticRegistry(),
	}
}

// quick is the library and the search for seeds at ten times the speed, for
// tests in which nodes must die.
func quick(c Config) Config {
	c.hooks.tune = func(l *memberlist.Config) {
		l.ProbeInterval = 100 * time.Millisecond
		l.ProbeTimeout = 50 * time.Millisecond
		l.SuspicionMult = 2
		l.SuspicionMaxTimeoutMult = 2
		l.GossipInterval = 20 * time.Millisecond
		l.GossipToTheDeadTime = 100 * time.Millisecond
		l.PushPullInterval = 0 // only what is tested here may heal anything
	}
	c.hooks.pace = pace{alone: 50 * time.Millisecond, aloneMax: 200 * time.Millisecond, company: 50 * time.Millisecond, companyMax: 200 * time.Millisecond}
	return c
}

func create(t *testing.T, c Config) *node {
	t.Helper()
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Members: m, t: t, stop: func() {}}
	t.Cleanup(n.kill)
	return n
}

// start makes a member and runs it until the test ends.
func start(t *testing.T, c Config) *node {
	t.Helper()
	n := create(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	n.stop = func() { cancel(); wg.Wait() }
	return n
}

// kill ends the member without a word to the others.
func (n *node) kill() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Error(err)
	}
	n.stop()
}

// ping sends a datagram that the other must answer; a few, on a machine so
// busy that half a second is not enough.
func (n *node) ping(to *node) (err error) {
	n.t.Helper()
	for range 20 {
		if _, err = n.list.Ping(to.roster.self, udp(n.t, to)); err == nil {
			return nil
		}
	}
	return err
}

func ids(ms []Member) []string {
	var s []string
	for _, m := range ms {
		s = append(s, m.ID)
	}
	return s
}

// until waits for the members to satisfy ok.
func (n *node) until(what string, ok func([]Member) bool) {
	n.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		changed := n.Changed()
		live := n.Live()
		if ok(live) {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			n.t.Fatalf("%s still sees %v, waiting for %s", n.Self().ID, ids(live), what)
		}
	}
}

// sees waits until the node sees exactly these, itself included.
func (n *node) sees(want ...string) {
	n.t.Helper()
	n.until("members", func(live []Member) bool {
		if len(live) != len(want) {
			return false
		}
		for i, id := range ids(live) {
			if id != want[i] {
				return false
			}
		}
		return true
	})
}

// names is a resolver whose records the test changes.
type names struct {
	mu      sync.Mutex
	records map[string][]netip.Addr
	asked   chan string // one value per lookup, if the test wants them
}

func (n *names) set(host string, ips ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.records == nil {
		n.records = map[string][]netip.Addr{}
	}
	n.records[host] = nil
	for _, ip := range ips {
		n.records[host] = append(n.records[host], netip.MustParseAddr(ip))
	}
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	ips := append([]netip.Addr(nil), n.records[host]...)
	n.mu.Unlock()
	if n.asked != nil {
		select {
		case n.asked <- host:
		default:
		}
	}
	return ips, nil
}
