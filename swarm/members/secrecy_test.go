package members

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// TestStrangers: a node with another key, no key, or another label never
// becomes a member, whoever calls whom.
func TestStrangers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*Config)
	}{
		{"wrong key", func(c *Config) { c.SecretKey = bytes.Repeat([]byte{1}, KeyLength) }},
		{"no key", func(c *Config) { c.SecretKey, c.Insecure = nil, true }},
		{"wrong label", func(c *Config) { c.Cluster = "other" }},
		{"wrong label and key", func(c *Config) {
			c.Cluster, c.SecretKey = "other", bytes.Repeat([]byte{1}, KeyLength)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := create(t, config("a"))
			b := create(t, config("b", a.Addr()))
			if err := b.contact(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := config("stranger", a.Addr(), b.Addr())
			tc.change(&c)
			x := create(t, c)
			if err := x.contact(t.Context()); err == nil {
				t.Error("the stranger joined")
			}
			// The members call the stranger.
			a.seeds, _ = parseSeeds([]string{x.Addr()}, 0)
			if err := a.contact(t.Context()); err == nil {
				t.Error("a member joined the stranger")
			}
			// The stranger sends datagrams that announce it. An answered ping
			// after them tells that the member has read them.
			for _, to := range []*node{a, b} {
				forge(t, x, to)
			}
			if err := b.ping(a); err != nil {
				t.Fatal(err)
			}
			for _, n := range []*node{a, b} {
				if diff := cmp.Diff([]string{"a", "b"}, ids(n.Live())); diff != "" {
					t.Errorf("%s (-want +got):\n%s", n.Self().ID, diff)
				}
			}
			if diff := cmp.Diff([]string{"stranger"}, ids(x.Live())); diff != "" {
				t.Errorf("the stranger (-want +got):\n%s", diff)
			}
		})
	}
}

func udp(t *testing.T, n *node) net.Addr {
	t.Helper()
	a, err := net.ResolveUDPAddr("udp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// forge lets from send a ping to a node that it knows only by address. The
// library adds what it has to gossip: the news that from exists.
func forge(t *testing.T, from, to *node) {
	t.Helper()
	if _, err := from.list.Ping(to.roster.self, udp(t, to)); err == nil {
		t.Errorf("%s answered a stranger", to.Self().ID)
	}
}

// TestForge checks the instrument: within a cluster, such a ping is answered
// and spreads the news.
func TestForge(t *testing.T) {
	t.Parallel()
	a, x := create(t, config("a")), create(t, config("x"))
	if err := x.ping(a); err != nil {
		t.Fatal(err)
	}
	a.sees("a", "x")
}

// tap records what a node sends.
type tap struct {
	memberlist.NodeAwareTransport
	mu       sync.Mutex
	datagram bytes.Buffer
	stream   bytes.Buffer
}

func (p *tap) wrap(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
	p.NodeAwareTransport = t
	return p
}

func (p *tap) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	p.mu.Lock()
	p.datagram.Write(b)
	p.mu.Unlock()
	return p.NodeAwareTransport.WriteToAddress(b, a)
}

func (p *tap) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	c, err := p.NodeAwareTransport.DialAddressTimeout(a, d)
	return tapped{c, p}, err
}

type tapped struct {
	net.Conn
	p *tap
}

func (c tapped) Write(b []byte) (int, error) {
	c.p.mu.Lock()
	c.p.stream.Write(b)
	c.p.mu.Unlock()
	return c.Conn.Write(b)
}

// TestEncrypted looks at the wire: with a key, nothing of a node's name or
// zone is there to be read, on UDP or TCP; without, it is, so the instrument
// works.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{true, false} {
		p := &tap{}
		insecure := func(c Config) Config {
			if !secure {
				c.SecretKey, c.Insecure = nil, true
			}
			return c
		}
		a := start(t, insecure(config("a")))
		c := insecure(config("confidential", a.Addr()))
		c.hooks.wrap = p.wrap
		b := start(t, c)
		a.sees("a", "confidential")
		if err := b.SetZone("secret-zone"); err != nil {
			t.Fatal(err)
		}
		a.until("the zone", func(live []Member) bool { return live[1].Zone != "" })
		b.stop()
		for _, w := range []struct {
			name string
			sent *bytes.Buffer
		}{{"UDP", &p.datagram}, {"TCP", &p.stream}} {
			p.mu.Lock()
			sent := w.sent.String()
			p.mu.Unlock()
			if len(sent) == 0 {
				t.Fatalf("nothing sent over %s", w.name)
			}
			if got := strings.Contains(sent, "confidential"); got == secure {
				t.Errorf("secure %v, name readable over %s: %v", secure, w.name, got)
			}
		}
	}
}

// TestKeyRotation goes from one key to another as the documentation says,
// without a moment in which the two nodes do not understand each other.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	next := bytes.Repeat([]byte{43}, KeyLength)
	a := create(t, config("a"))
	b := create(t, config("b", a.Addr()))
	if err := b.contact(t.Context()); err != nil {
		t.Fatal(err)
	}
	talk := func(step string) {
		t.Helper()
		for _, p := range []struct{ from, to *node }{{a, b}, {b, a}} {
			if err := p.from.ping(p.to); err != nil {
				t.Errorf("%s: %s pings %s: %v", step, p.from.Self().ID, p.to.Self().ID, err)
			}
		}
	}
	set := func(n *node, keys ...[]byte) {
		t.Helper()
		if err := n.SetKeys(keys); err != nil {
			t.Fatal(err)
		}
	}
	talk("before")
	set(a, key, next)
	talk("a knows both")
	set(b, key, next)
	set(a, next, key)
	talk("a uses the new one")
	set(b, next, key)
	talk("b uses the new one")

	c := config("c", a.Addr())
	c.SecretKey = next
	if err := create(t, c).contact(t.Context()); err != nil {
		t.Errorf("a node with the new key only: %v", err)
	}
	for name, keys := range map[string][][]byte{"none": nil, "short": {next[:31]}} {
		if err := a.SetKeys(keys); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	plain := config("plain")
	plain.SecretKey, plain.Insecure = nil, true
	if err := create(t, plain).SetKeys([][]byte{next}); err == nil {
		t.Error("a key for gossip in the clear was accepted")
	}
}

// TestHostileMember: a process that has the key, but speaks nonsense about
// itself, is not taken for a member, and does no harm to those who are.
func TestHostileMember(t *testing.T) {
	t.Parallel()
	good := meta{id: "x", control: 1, wire: 2, protocol: 1}
	for _, tc := range []struct {
		name, node string
		meta       []byte
	}{
		{"no metadata", "x/1", nil},
		{"garbage", "x/1", []byte{1, 255, 255, 0}},
		{"other version", "x/1", append([]byte{9}, good.encode()[1:]...)},
		{"name without instance", "x", good.encode()},
		{"somebody else's name", "a/1", good.encode()},
		{"long name", "x/" + strings.Repeat("1", 300), good.encode()},
		{"huge metadata", "x/1", bytes.Repeat([]byte{1}, 512)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := &lines{}
			c := config("a")
			c.Log = zerolog.New(log)
			a := create(t, c)
			conf, err := config("x").library(tc.node, nil)
			if err != nil {
				t.Fatal(err)
			}
			conf.Transport = nil
			conf.BindAddr, conf.BindPort, conf.AdvertisePort = "127.0.0.1", 0, 0
			conf.Delegate = hostile{meta: tc.meta}
			x, err := memberlist.Create(conf)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Shutdown()
			// The exchange is accepted before its content is judged.
			_, _ = x.Join([]string{a.Addr()})
			log.await(t, "ignoring alive message")
			if testutil.ToFloat64(a.metrics.rejected) == 0 {
				t.Error("the rejection was not counted")
			}
			if diff := cmp.Diff([]string{"a"}, ids(a.Live())); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
		})
	}
}

type hostile struct {
	delegate
	meta []byte
}

func (h hostile) NodeMeta(int) []byte { return h.meta }

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
	new chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.new != nil {
		close(l.new)
		l.new = nil
	}
	return l.buf.Write(p)
}

// await waits for a text in the log.
func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		got := l.buf.String()
		if l.new == nil {
			l.new = make(chan struct{})
		}
		more := l.new
		l.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("no %q in the log:\n%s", text, got)
		}
	}
}

func TestLibraryLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := newLibraryLog(zerolog.New(&out))
	log.Printf("[ERR] memberlist: Push/Pull with %s failed", "x\n{}")
	log.Print("[WARN] memberlist: careful")
	log.Print("[INFO] memberlist: so it is")
	log.Print("[DEBUG] memberlist: detail")
	log.Print("no level [at all] here")
	want := `{"level":"warn","component":"gossip","message":"Push/Pull with x\n{} failed"}
{"level":"warn","component":"gossip","message":"careful"}
{"level":"info","component":"gossip","message":"so it is"}
{"level":"debug","component":"gossip","message":"detail"}
{"level":"debug","component":"gossip","message":"no level [at all] here"}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	out.Reset()
	for range 1000 {
		log.Print("[ERR] memberlist: flood")
	}
	if got := strings.Count(out.String(), "\n"); got > 2*libraryBurst {
		t.Errorf("a flood left %d lines", got)
	}
}
