package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/shoal-dev/shoal/cmd/internal/pull"
	"github.com/shoal-dev/shoal/swarm/peertls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin is a registry with one image of one layer.
type origin struct {
	srv     *httptest.Server
	host    string
	content map[string][]byte
	layer   digest.Digest
	sent    atomic.Int64 // bytes of the layer
	// halfway, if set, is called when half of the layer was sent.
	halfway func()
	// silent: it takes requests and says nothing.
	silent atomic.Bool
}

func newOrigin(t *testing.T, layerSize int) *origin {
	t.Helper()
	o := &origin{content: map[string][]byte{}}
	blob := func(p []byte) v1.Descriptor {
		d := digest.FromBytes(p)
		o.content["/v2/app/blobs/"+d.String()] = p
		return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(p))}
	}
	data := make([]byte, layerSize)
	_, _ = rand.Read(data)
	layer := blob(data)
	o.layer = layer.Digest
	man, err := json.Marshal(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: blob([]byte(`{"os":"linux"}`)), Layers: []v1.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	o.content["/v2/app/manifests/latest"] = man
	o.content["/v2/app/manifests/"+digest.FromBytes(man).String()] = man
	o.srv = httptest.NewServer(o)
	t.Cleanup(o.srv.Close)
	o.host = o.srv.Listener.Addr().String()
	return o
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if o.silent.Load() {
		<-r.Context().Done()
		return
	}
	p, ok := o.content[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(p).String())
	}
	if strings.HasSuffix(r.URL.Path, o.layer.String()) && r.Method == http.MethodGet {
		http.ServeContent(countingWriter{w, o}, r, "", time.Time{}, bytes.NewReader(p))
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
}

type countingWriter struct {
	http.ResponseWriter
	o *origin
}

func (w countingWriter) Write(p []byte) (int, error) {
	if n := w.o.sent.Add(int64(len(p))); w.o.halfway != nil && n > int64(len(w.o.content["/v2/app/blobs/"+w.o.layer.String()])/2) {
		w.o.halfway()
	}
	return w.ResponseWriter.Write(p)
}

// config of a node on free ports of the loopback interface.
func config(t *testing.T, name string, o *origin) Config {
	const free = "127.0.0.1:0"
	return Config{
		Cluster: "test", Name: name, DataDir: filepath.Join(t.TempDir(), name),
		MirrorAddr: free, ControlAddr: free, WireAddr: free, GossipAddr: free, MetricsAddr: free,
		InsecurePeers: true,
		Registries:    []string{o.host}, InsecureRegistries: []string{o.host},
		Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel),
	}
}

// running is a node that runs.
type running struct {
	*Node
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, c Config) *running {
	t.Helper()
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{n, cancel, make(chan error, 1)}
	go func() { r.done <- n.Run(ctx) }()
	t.Cleanup(r.end(t))
	return r
}

// end stops the node and waits for it; more than once does no harm.
func (r *running) end(t *testing.T) func() {
	return func() {
		r.stop()
		if err, ok := <-r.done; ok {
			close(r.done)
			if err != nil {
				t.Errorf("%s ended with %v", r.cfg.Name, err)
			}
		}
	}
}

func (r *running) pull(t *testing.T, o *origin, ref string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := pull.Image(ctx, o.host+"/app"+ref, pull.Options{Mirror: "http://" + r.Addresses().Mirror})
	return err
}

func (r *running) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + r.Addresses().Metrics + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(p)
}

// eventually waits for what the nodes do on their own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("timeout: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestClusterWithCertificates(t *testing.T) {
	o := newOrigin(t, 3<<20)
	ca, err := peertls.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secure := func(name string) Config {
		cert, err := ca.Issue(name, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c := config(t, name, o)
		c.InsecurePeers, c.CertsDir = false, t.TempDir()
		if err := peertls.WriteNode(c.CertsDir, cert, false); err != nil {
			t.Fatal(err)
		}
		return c
	}
	one := start(t, secure("one"))
	cfg := secure("two")
	cfg.Join = []string{one.Addresses().Gossip}
	two := start(t, cfg)
	eventually(t, "two nodes see each other", func() bool {
		return len(one.members.Live()) == 2 && len(two.members.Live()) == 2
	})

	if err := one.pull(t, o, ":latest"); err != nil {
		t.Fatal(err)
	}
	// What one node has is enough: the registry goes away.
	o.srv.Close()
	eventually(t, "the second node finds the first one's content", func() bool {
		_, holders, err := two.swarm.Locate(t.Context(), o.layer)
		return err == nil && holders == 1
	})
	if err := two.pull(t, o, ":latest"); err != nil {
		t.Fatal(err)
	}
	if got, size := o.sent.Load(), int64(3<<20); got > size*105/100 {
		t.Errorf("%d bytes of a layer of %d left the registry", got, size)
	}

	for path, want := range map[string]string{
		"/healthz": "ok",
		"/readyz":  `"ready":true`,
		"/metrics": `shoal_mirror_requests_total{cache="hit",registry="` + o.host + `"}`,
	} {
		if status, body := two.get(t, path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, no %q in\n%s", path, status, want, body)
		}
	}

	// A node that stops leaves at once, and its data directory is free.
	two.end(t)()
	eventually(t, "the one that left is gone", func() bool { return len(one.members.Live()) == 1 })
	again := start(t, cfg)
	eventually(t, "it is back", func() bool { return len(one.members.Live()) == 2 })
	if err := again.pull(t, o, ":latest"); err != nil {
		t.Error(err)
	}
}

// TestOutageOutlivesRestarts: while the registry is away, all nodes restart, one after
// the other. What everybody may pull can still be pulled on each, by tag and by digest.
func TestOutageOutlivesRestarts(t *testing.T) {
	o := newOrigin(t, 3<<20)
	configs := make([]Config, 4)
	nodes := make([]*running, len(configs))
	company := func(i int) func() bool {
		return func() bool { return len(nodes[i].members.Live()) == len(nodes) }
	}
	for i := range configs {
		configs[i] = config(t, "node"+string(rune('a'+i)), o)
		configs[i].TagTTL = time.Millisecond // nothing counts as fresh
		if i > 0 {
			configs[i].Join = []string{nodes[0].Addresses().Gossip}
		}
		nodes[i] = start(t, configs[i])
	}
	for i := range nodes {
		eventually(t, "all nodes see each other", company(i))
	}
	byDigest := "@" + digest.FromBytes(o.content["/v2/app/manifests/latest"]).String()
	for _, ref := range []string{":latest", byDigest} {
		if err := nodes[0].pull(t, o, ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes[3].pull(t, o, ":latest"); err != nil { // so that another one holds the content
		t.Fatal(err)
	}
	o.silent.Store(true)
	for i := range nodes {
		nodes[i].end(t)()
		configs[i].Join = []string{nodes[(i+1)%len(nodes)].Addresses().Gossip}
		nodes[i] = start(t, configs[i])
		eventually(t, "the node is back", company(i))
	}
	for _, n := range nodes {
		eventually(t, "the node finds the content", func() bool {
			_, holders, err := n.swarm.Locate(t.Context(), o.layer)
			return err == nil && holders > 0
		})
	}
	// All at once: none is refused for waiting for another.
	for _, ref := range []string{byDigest, ":latest"} {
		var all sync.WaitGroup
		for i, n := range nodes {
			all.Go(func() {
				if err := n.pull(t, o, ref); err != nil {
					t.Errorf("node %d: %s: %v", i, ref, err)
				}
			})
		}
		all.Wait()
	}
}

func TestStopFinishesResponses(t *testing.T) {
	o := newOrigin(t, 8<<20)
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	o.halfway = func() {
		if once.CompareAndSwap(false, true) {
			close(reached)
		}
		<-goOn
	}
	other := newOrigin(t, 1<<20)
	c := config(t, "one", o)
	c.Registries, c.InsecureRegistries = append(c.Registries, other.host), append(c.InsecureRegistries, other.host)
	n := start(t, c)
	pulled := make(chan error, 1)
	go func() { pulled <- n.pull(t, o, ":latest") }()
	<-reached
	n.stop()
	eventually(t, "the node is not ready", func() bool {
		status, body := n.get(t, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "starting or stopping")
	})
	// What the client asks for next belongs to the same pull.
	if err := n.pull(t, other, ":latest"); err != nil {
		t.Errorf("a pull that began while another one was under way failed: %v", err)
	}
	select {
	case err := <-n.done:
		t.Fatalf("the node ended in the middle of a response: %v", err)
	default:
	}
	close(goOn)
	if err := <-pulled; err != nil {
		t.Errorf("the pull under way failed: %v", err)
	}
}

func TestStopIsBounded(t *testing.T) {
	o := newOrigin(t, 8<<20)
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	o.halfway = func() {
		if once.CompareAndSwap(false, true) {
			close(reached)
		}
		<-goOn
	}
	c := config(t, "one", o)
	c.Drain = 50 * time.Millisecond
	n := start(t, c)
	pulled := make(chan error, 1)
	go func() { pulled <- n.pull(t, o, ":latest") }()
	<-reached
	began := time.Now()
	n.end(t)()
	// Drain, the farewell (3 s at most) and the transfers to peers (2 s).
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
	close(goOn)
	if err := <-pulled; err == nil {
		t.Error("the pull succeeded although its end never came")
	}
}

func TestRunFailsWithAPart(t *testing.T) {
	n, err := New(config(t, "one", newOrigin(t, 1)))
	if err != nil {
		t.Fatal(err)
	}
	_ = n.mirrorLn.Close()
	if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "mirror listener") {
		t.Errorf("error %v, want one that names the mirror listener", err)
	}
}

func TestCloseWithoutRun(t *testing.T) {
	c := config(t, "one", newOrigin(t, 1))
	for range 2 { // the second one needs what the first one held
		n, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		c.MirrorAddr = n.Addresses().Mirror
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewCleansUpAfterFailure(t *testing.T) {
	c := config(t, "one", newOrigin(t, 1))
	c.DockerConfig, c.Authorization = filepath.Join(t.TempDir(), "none"), map[string]string{"*": "node"}
	if _, err := New(c); err == nil {
		t.Fatal("no error for a missing docker config")
	}
	c.DockerConfig, c.Authorization = "", nil
	c.Registries = []string{"bad host"}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "registries: ") {
		t.Fatalf("error %v", err)
	}
	c.Registries = []string{"docker.io"}
	n, err := New(c) // the data directory's lock is free again
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

type readyFlag bool

func (r readyFlag) Ready() bool { return bool(r) }

func TestReadiness(t *testing.T) {
	for name, tt := range map[string]struct {
		serving    bool
		containerd interface{ Ready() bool }
		want       readiness
	}{
		"serving":            {true, nil, readiness{true, map[string]string{"mirror": "ok"}}},
		"not yet":            {false, nil, readiness{false, map[string]string{"mirror": "starting or stopping"}}},
		"with containerd":    {true, readyFlag(true), readiness{true, map[string]string{"mirror": "ok", "containerd": "ok"}}},
		"containerd is away": {true, readyFlag(false), readiness{false, map[string]string{"mirror": "ok", "containerd": "not connected: what it holds is not known"}}},
	} {
		h := health{containerd: tt.containerd}
		h.serving.Store(tt.serving)
		if diff := cmp.Diff(tt.want, h.readiness()); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestValidate(t *testing.T) {
	good := func() Config { return config(t, "one", &origin{host: "r.test"}) }
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no cluster":           {func(c *Config) { c.Cluster = "" }, "cluster: required"},
		"cluster with a slash": {func(c *Config) { c.Cluster = "a/b" }, `cluster: "a/b"`},
		"long node":            {func(c *Config) { c.Name = strings.Repeat("n", 254) }, "node: "},
		"no data":              {func(c *Config) { c.DataDir = "" }, "data-dir: required"},
		"no mirror":            {func(c *Config) { c.MirrorAddr = "" }, "mirror-addr: required"},
		"no port":              {func(c *Config) { c.GossipAddr = "127.0.0.1" }, "gossip-addr: "},
		"port by name":         {func(c *Config) { c.WireAddr = ":http" }, `wire-addr: "http": want a port number`},
		"port twice":           {func(c *Config) { c.WireAddr, c.ControlAddr = ":1", ":1" }, "wire-addr: :1 is control-addr already"},
		"no certificates":      {func(c *Config) { c.InsecurePeers = false }, "certs-dir: required"},
		"both":                 {func(c *Config) { c.CertsDir = "x" }, "insecure-peers: contradicts"},
		"useless credentials":  {func(c *Config) { c.DockerConfig = "/dev/null" }, "docker-config: of no use"},
		"whose right":          {func(c *Config) { c.Authorization = map[string]string{"r.test": "pod"} }, `authorization: r.test: "pod"`},
		"outage":               {func(c *Config) { c.OnOutage = "allow" }, `on-outage: "allow"`},
		"negative grant":       {func(c *Config) { c.GrantTTL = -1 }, "grant-ttl: "},
		"negative grace":       {func(c *Config) { c.OutageGrace = -1 }, "outage-grace: "},
		"no registry":          {func(c *Config) { c.Registries = nil }, "registry: required"},
		"negative size":        {func(c *Config) { c.CacheSize = -1 }, "cache-size: -1"},
		"negative time":        {func(c *Config) { c.TagTTL = -1 }, "tag-ttl: "},
		"root alone":           {func(c *Config) { c.ContainerdRoot = "/x" }, "containerd-root: of no use"},
	} {
		c := good()
		tt.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
	if err := (Config{}).Validate(); err == nil || strings.Count(err.Error(), "required") < 7 {
		t.Errorf("not all mistakes at once: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New accepts the zero Config")
	}
}
