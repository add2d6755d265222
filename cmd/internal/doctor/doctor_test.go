package doctor

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/mirror"
	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/peertls"
)

const mirrorURL = "http://127.0.0.1:6500"

// node makes a file system of a node, with files by their paths.
func node(t *testing.T, files map[string]string) *Env {
	t.Helper()
	e := &Env{
		Root: t.TempDir(), Config: "/etc/containerd/config.toml", HostsDir: "/etc/containerd/certs.d", Mirror: mirrorURL,
		Proxy:   func(*url.URL) (*url.URL, error) { return nil, nil },
		DataDir: "/", ControlPort: "6501", WirePort: "6502", GossipPort: "6503", Cluster: "test",
	}
	setRegistries(t, e, upstream.Config{}, "docker.io", "registry.test:5000", "*.gcr.io")
	for name, text := range files {
		p := e.path(name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			p = filepath.Join(p, ".keep")
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// setRegistries says which are mirrored, and how they are spoken to.
func setRegistries(t *testing.T, e *Env, c upstream.Config, registries ...string) {
	t.Helper()
	var err error
	if e.Registries, err = mirror.NewRegistries(registries); err != nil {
		t.Fatal(err)
	}
	if e.Upstream, err = upstream.New(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Upstream.Close)
}

func ids(all []Finding) []string {
	out := []string{}
	for _, f := range all {
		out = append(out, f.ID)
	}
	return out
}

// evidence tells whether a finding shows something.
func evidence(all []Finding, text string) bool {
	return slices.ContainsFunc(all, func(f Finding) bool {
		return strings.Contains(strings.Join(append(f.Evidence, f.Fix), "\n"), text)
	})
}

func TestHosts(t *testing.T) {
	const (
		ours   = "[host.\"" + mirrorURL + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
		theirs = "[host.\"https://mirror.test\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string
		shows string
	}{
		{"all", map[string]string{"_default/hosts.toml": ours}, nil, ""},
		{"one", map[string]string{"docker.io/hosts.toml": ours + theirs}, nil, ""},
		{"another one is none of ours", map[string]string{"_default/hosts.toml": ours, "other.test/hosts.toml": theirs}, nil, ""},
		{"no directory", nil, []string{"hosts-missing"}, "certs.d"},
		{"nothing of ours", map[string]string{"other.test/hosts.toml": theirs}, []string{"hosts-missing"}, ""},
		{"without", map[string]string{"_default/hosts.toml": theirs}, []string{"hosts-without-mirror"}, "mirror.test"},
		{"another port", map[string]string{"_default/hosts.toml": strings.Replace(ours, "6500", "6600", 1)}, []string{"hosts-without-mirror"}, "6600"},
		{"second", map[string]string{"_default/hosts.toml": theirs + ours}, []string{"hosts-order"}, "mirror.test"},
		{"pull only", map[string]string{"_default/hosts.toml": strings.Replace(ours, ", \"resolve\"", "", 1)}, []string{"hosts-capabilities"}, "resolve"},
		{"hidden", map[string]string{"_default/hosts.toml": ours, "registry.test_5000_/": ""}, []string{"hosts-without-mirror"}, "registry.test_5000_"},
		{"a pattern", map[string]string{"_default/hosts.toml": ours, "eu.gcr.io/hosts.toml": theirs}, []string{"hosts-without-mirror"}, "eu.gcr.io"},
		{"syntax", map[string]string{"_default/hosts.toml": "server = \"x\"\n[host\n"}, []string{"hosts-unparsable"}, "line 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]string{}
			for name, text := range c.files {
				files["/etc/containerd/certs.d/"+name] = text
			}
			found := checkHosts(node(t, files))
			if diff := cmp.Diff(append([]string{}, c.want...), ids(found)); diff != "" {
				t.Error(diff)
			}
			if c.shows != "" && !evidence(found, c.shows) {
				t.Errorf("%+v does not show %q", found, c.shows)
			}
		})
	}
}

// serveShoal answers like a node's metrics port and mirror.
func serveShoal(t *testing.T, e *Env, ready, metrics string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, ready) })
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, metrics) })
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	e.Mirror, e.Metrics = s.URL, s.URL
}

const isReady = `{"ready":true,"checks":{"mirror":"ok"}}`

func TestShoal(t *testing.T) {
	e := node(t, nil)
	serveShoal(t, e, isReady, "shoal_members 3\n")
	s := readShoal(t.Context(), e)
	if found := checkShoal(t.Context(), e, s); len(found) > 0 || s.metrics["shoal_members"] != 3 {
		t.Errorf("healthy: %+v, metrics %v", found, s.metrics)
	}
	serveShoal(t, e, `{"ready":false,"checks":{"mirror":"ok","containerd":"not connected"}}`, "")
	found := checkShoal(t.Context(), e, readShoal(t.Context(), e))
	if diff := cmp.Diff([]string{"not-ready"}, ids(found)); diff != "" || !evidence(found, "containerd: not connected") {
		t.Errorf("not ready: %+v", found)
	}
	e.Mirror = e.Metrics + "/other" // 404
	if found := checkShoal(t.Context(), e, shoal{ready: true}); !slices.Equal(ids(found), []string{"mirror-foreign"}) {
		t.Errorf("another server: %+v", found)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	l.Close()
	e.Mirror, e.Metrics = closed, closed
	if found := checkShoal(t.Context(), e, readShoal(t.Context(), e)); !slices.Equal(ids(found), []string{"mirror-silent", "not-examined"}) {
		t.Errorf("nothing: %+v", found)
	}
}

func TestUpstreams(t *testing.T) {
	limited := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }))
	t.Cleanup(limited.Close)
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(tls.Close)
	host := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	e := node(t, nil)
	config := upstream.Config{Insecure: []string{host(limited)}, Local: []string{host(tls)}}
	setRegistries(t, e, config, host(limited), host(tls), "*.test")
	found := checkUpstreams(t.Context(), e)
	if diff := cmp.Diff([]string{"upstream-unreachable", "upstream-limited"}, ids(found)); diff != "" || !evidence(found, "certificate") {
		t.Errorf("%s%+v", diff, found)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(tls), 0o600); err != nil {
		t.Fatal(err)
	}
	config.CAs = map[string]string{host(tls): ca}
	setRegistries(t, e, config, host(limited), host(tls), "*.test")
	if diff := cmp.Diff([]string{"upstream-limited"}, ids(checkUpstreams(t.Context(), e))); diff != "" {
		t.Error(diff)
	}
}

func TestLimits(t *testing.T) {
	const window = 6 * time.Hour
	found := judgeLimits(map[string]upstream.Limit{
		"few.test": {Total: 100, Left: 19, Window: window}, "fifth.test": {Total: 100, Left: 20, Window: window},
		"none.test": {Total: 1}, "all.test": {Total: 1, Left: 1},
	})
	want := map[Severity][]string{
		Warning: {"few.test: 19 of 100 pulls are left in a window of 6h0m0s", "none.test: 0 of 1 pulls are left"},
		Note:    {"all.test: 1 of 1 pulls are left", "fifth.test: 20 of 100 pulls are left in a window of 6h0m0s"},
	}
	got := map[Severity][]string{}
	for _, f := range found {
		got[f.Severity] = f.Evidence
	}
	if diff := cmp.Diff(want, got); diff != "" || !evidence(found, "--docker-config") {
		t.Errorf("%s%+v", diff, found)
	}
	if found := judgeLimits(nil); len(found) > 0 {
		t.Errorf("of nothing: %+v", found)
	}
}

// TestLimitsAreAsked: the second image of a registry is asked for when the first is
// private, and none more once the registry has said.
func TestLimitsAreAsked(t *testing.T) {
	var asked []string
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if strings.Contains(r.URL.Path, "private") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("RateLimit-Limit", "10")
		w.Header().Set("RateLimit-Remaining", "9")
	}))
	t.Cleanup(registry.Close)
	host := registry.Listener.Addr().String()
	e := node(t, nil)
	setRegistries(t, e, upstream.Config{Insecure: []string{host}}, host)
	images := map[string][]reference.NamedTagged{}
	for _, name := range []string{"private", "app", "other"} {
		ref, err := reference.ParseDockerRef(host + "/" + name + ":v1")
		if err != nil {
			t.Fatal(err)
		}
		images[host] = append(images[host], ref.(reference.NamedTagged))
	}
	if diff := cmp.Diff(map[string]upstream.Limit{host: {Total: 10, Left: 9}}, askLimits(t.Context(), e.Upstream, images)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/v2/private/manifests/v1", "/v2/app/manifests/v1"}, asked); diff != "" {
		t.Error(diff)
	}
}

func TestPeers(t *testing.T) {
	t.Parallel()
	ca, err := peertls.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *peertls.CA, life time.Duration) string {
		t.Helper()
		n, err := ca.Issue("n", time.Now(), life)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "n")
		if err := peertls.WriteNode(dir, n, false); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir := issue(ca, 100*24*time.Hour)
	creds, err := peertls.Load(peertls.Config{Dir: dir, Cluster: "test"})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(swarm.PathProbe, swarm.ServeProbe)
	peer := httptest.NewUnstartedServer(mux)
	peer.TLS = creds.ServerConfig("http/1.1")
	peer.Config.ErrorLog = log.New(io.Discard, "", 0)
	peer.StartTLS()
	t.Cleanup(peer.Close)
	e := node(t, nil)
	e.CertsDir, e.Join = dir, []string{"127.0.0.1:1"}
	_, port, err := net.SplitHostPort(peer.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	e.ControlPort, e.WirePort, e.GossipPort = port, port, port
	member, err := members.New(members.Config{
		Cluster: "test", NodeID: "n", BindAddr: net.JoinHostPort("127.0.0.1", "0"), ControlPort: 1, WirePort: 1,
		SecretKey: creds.GossipKey(), Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = member.Close() })
	_, e.GossipPort, err = net.SplitHostPort(member.Addr())
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, s shoal, want ...string) {
		t.Helper()
		if diff := cmp.Diff(append([]string{}, want...), ids(checkPeers(t.Context(), e, s))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	check("all is well", shoal{metrics: metrics{"shoal_members": 2}})
	check("alone", shoal{metrics: metrics{"shoal_members": 1}}, "alone")
	check("clock", shoal{metrics: metrics{"shoal_members": 2, "shoal_peer_clock_skew_seconds": -31}}, "clock-skew")
	e.Advertise = "127.0.0.1"
	check("the only one is itself", shoal{metrics: metrics{"shoal_members": 1}})
	e.Advertise = ""

	stranger, err := peertls.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.CertsDir = issue(stranger, 100*24*time.Hour)
	check("a stranger", shoal{metrics: metrics{"shoal_members": 1}}, "peer-refuses")
	e.CertsDir = issue(ca, 24*time.Hour)
	check("near its end", shoal{metrics: metrics{"shoal_members": 2}}, "certificate-expiring")
	e.CertsDir = t.TempDir()
	check("no certificate", shoal{metrics: metrics{"shoal_members": 2}}, "certificate")

	e.CertsDir, e.WirePort = dir, "1"
	check("a closed port", shoal{metrics: metrics{"shoal_members": 2}}, "peer-unreachable")
	e.ControlPort, e.GossipPort = "1", "1"
	check("all ports closed", shoal{metrics: metrics{"shoal_members": 1}}, "peer-down")
	e.ControlPort, e.GossipPort, e.WirePort = port, port, port // TCP, and no UDP
	check("no gossip", shoal{metrics: metrics{"shoal_members": 2}}, "gossip-silent")
	e.WirePort, e.Join = port, []string{"nowhere.invalid:6503"}
	check("no such name", shoal{metrics: metrics{"shoal_members": 1}}, "join-unresolved")
}

// TestSilentPeer: the kernel takes connections, and nobody answers, whatever size
// packets have.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	e := node(t, nil)
	_, e.ControlPort, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	e.Join, e.WirePort, e.GossipPort = []string{"127.0.0.1"}, e.ControlPort, e.ControlPort
	found := checkPeers(t.Context(), e, shoal{metrics: metrics{"shoal_members": 1}})
	if diff := cmp.Diff([]string{"peer-unreachable"}, ids(found)); diff != "" || !evidence(found, "takes connections, and then nothing comes") {
		t.Errorf("%s%+v", diff, found)
	}
}

func TestStorage(t *testing.T) {
	e := node(t, nil)
	s := shoal{metrics: metrics{}}
	if found := checkStorage(t.Context(), e, s); len(found) > 0 {
		t.Errorf("healthy: %+v", found)
	}
	s.metrics[`shoal_mirror_fallbacks_total{reason="disk_full"}`], s.metrics["shoal_containerd_damaged_blobs"] = 2, 1
	e.DiskReserve = 1 << 60
	if diff := cmp.Diff([]string{"disk-full", "content-damaged", "cache-full"}, ids(checkStorage(t.Context(), e, s))); diff != "" {
		t.Error(diff)
	}
	e.DataDir = "/nowhere"
	if diff := cmp.Diff([]string{"not-examined"}, ids(checkStorage(t.Context(), e, shoal{metrics: metrics{}}))); diff != "" {
		t.Error(diff)
	}
}

func TestHint(t *testing.T) {
	e := node(t, nil)
	for socket, want := range map[string]string{
		"":                                    "ctr --namespace k8s.io images pull --hosts-dir /etc/containerd/certs.d IMAGE",
		"unix://" + defaultSocket:             "nerdctl --namespace k8s.io --hosts-dir /etc/containerd/certs.d pull IMAGE",
		"/run/k3s/containerd/containerd.sock": "ctr --address /run/k3s/containerd/containerd.sock --namespace",
	} {
		if e.Socket = socket; !evidence(hintClients(e), want) {
			t.Errorf("%q: %+v, want %q", socket, hintClients(e), want)
		}
	}
}

func TestVersion(t *testing.T) {
	for version, old := range map[string]bool{"v2.3.4": false, "1.7.34": false, "1.6.20~ds1": false, "v1.5.9": true, "0.2.1": true, "dev": false} {
		if got := len(judgeVersion(version)) > 0; got != old {
			t.Errorf("%s is old: %v", version, got)
		}
	}
}

// TestTroubleshooting: each finding has a section in the docs, and there are no
// others.
func TestTroubleshooting(t *testing.T) {
	text, err := os.ReadFile("../../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^### `([a-z0-9-]+)`$").FindAllStringSubmatch(string(text), -1) {
		sections[m[1]] = true
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range files {
		code, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\bID: "([a-z0-9-]+)"`).FindAllStringSubmatch(string(code), -1) {
			found[m[1]] = true
		}
	}
	if len(found) < 20 {
		t.Fatalf("%d ids in the code: looking for them in the wrong way", len(found))
	}
	if diff := cmp.Diff(found, sections); diff != "" {
		t.Errorf("-findings +sections of docs/troubleshooting.md:\n%s", diff)
	}
}

func pemOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}
