package peertls

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// run runs the credentials until the test ends.
func run(t *testing.T, c *Credentials) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// secret is a mounted Kubernetes secret: files are links to ..data/<file>,
// ..data is a link to a directory, and an update swaps that link.
type secret struct {
	t   *testing.T
	dir string
	gen int
}

func newSecret(t *testing.T, content map[string][]byte) *secret {
	s := &secret{t: t, dir: t.TempDir()}
	s.update(content)
	for name := range content {
		s.must(os.Symlink(filepath.Join(dataLink, name), filepath.Join(s.dir, name)))
	}
	return s
}

func (s *secret) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *secret) update(content map[string][]byte) {
	s.t.Helper()
	s.gen++
	data := fmt.Sprintf("..2030_01_01_00_00_%02d.1", s.gen)
	s.must(os.Mkdir(filepath.Join(s.dir, data), 0o700))
	for name, p := range content {
		write(s.t, filepath.Join(s.dir, data, name), p)
	}
	old, _ := os.Readlink(filepath.Join(s.dir, dataLink))
	s.must(os.Symlink(data, filepath.Join(s.dir, "..data_tmp")))
	s.must(os.Rename(filepath.Join(s.dir, "..data_tmp"), filepath.Join(s.dir, dataLink)))
	if old != "" {
		s.must(os.RemoveAll(filepath.Join(s.dir, old)))
	}
}

// content makes the files of a node: certified by ca, trusting all of trust.
func content(t *testing.T, node string, ca *CA, trust ...*CA) map[string][]byte {
	t.Helper()
	n, err := ca.Issue(node, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := encodeKey(n.key)
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for _, c := range trust {
		bundle = append(bundle, encodeCert(c.Cert)...)
	}
	return map[string][]byte{
		CAFile: bundle, CertFile: encodeCert(n.Cert), KeyFile: key, GossipFile: formatGossipKeys(ca.gossip...),
	}
}

// TestRotateAuthority goes through the three steps of the package
// documentation with two nodes, and after each step and half step both
// directions work; at the end the old authority is worth nothing.
func TestRotateAuthority(t *testing.T) {
	old, young := authority(t), authority(t)
	sa := newSecret(t, content(t, "a", old, old))
	sb := newSecret(t, content(t, "b", old, old))
	a, b := load(t, sa.dir), load(t, sb.dir)
	run(t, a)
	run(t, b)
	late := load(t, issue(t, old, "late"))

	update := func(s *secret, c *Credentials, files map[string][]byte) {
		t.Helper()
		ch := c.Changed()
		s.update(files)
		await(t, "rotation", ch)
	}
	// The configurations are made once, as a server does.
	aServer, aClient, bServer, bClient := a.ServerConfig(), a.ClientConfig(), b.ServerConfig(), b.ClientConfig()
	check := func(step string) {
		t.Helper()
		if s, c := connect(t, aServer, bClient); s.err != nil || c.err != nil {
			t.Fatalf("%s: server a: %v, client b: %v", step, s.err, c.err)
		}
		if s, c := connect(t, bServer, aClient); s.err != nil || c.err != nil {
			t.Fatalf("%s: server b: %v, client a: %v", step, s.err, c.err)
		}
	}
	check("before")
	update(sa, a, content(t, "a", old, old, young))
	check("a trusts both")
	update(sb, b, content(t, "b", old, old, young))
	check("b trusts both")
	update(sa, a, content(t, "a", young, old, young))
	check("a has a new certificate")
	if _, c := connect(t, aServer, bClient); !c.state.PeerCertificates[0].Equal(a.set.Load().cert.Leaf) {
		t.Error("a new connection shows an old certificate")
	}
	update(sb, b, content(t, "b", young, old, young))
	check("b has a new certificate")
	if _, c := connect(t, late.ServerConfig(), aClient); c.err != nil && !strings.Contains(c.err.Error(), "remote error") {
		t.Errorf("a refused a certificate of the old authority too early: %v", c.err)
	}
	update(sa, a, content(t, "a", young, young))
	check("a trusts the new one only")
	update(sb, b, content(t, "b", young, young))
	check("b trusts the new one only")
	if s, _ := connect(t, aServer, late.ClientConfig()); s.err == nil {
		t.Error("a certificate of the withdrawn authority was accepted")
	}
	if _, c := connect(t, late.ServerConfig(), bClient); c.err == nil {
		t.Error("a server of the withdrawn authority was accepted")
	}
}

// TestRotateFiles replaces plain files one by one, as `shoal certs` does.
func TestRotateFiles(t *testing.T) {
	ca := authority(t)
	dir := issue(t, ca, "a")
	c := load(t, dir)
	run(t, c)
	before := c.set.Load().cert.Leaf
	n, err := ca.Issue("a", time.Now(), 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ch := c.Changed()
	if err := WriteNode(dir, n, true); err != nil {
		t.Fatal(err)
	}
	await(t, "rotation", ch)
	if got := c.set.Load().cert.Leaf; got.Equal(before) || !got.Equal(n.Cert) {
		t.Errorf("certificate in use is %s", got.SerialNumber)
	}
}

// TestRotateWithoutEvents: where nothing reports changes, polling finds them.
func TestRotateWithoutEvents(t *testing.T) {
	ca := authority(t)
	// The directory is reached through a link. Turning the link changes what
	// is behind the name without any event in the directory watched.
	first, second := issue(t, ca, "a"), issue(t, ca, "a")
	link := filepath.Join(t.TempDir(), "certs")
	if err := os.Symlink(first, link); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Config{Dir: link, Cluster: cluster, Poll: 20 * time.Millisecond, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	ch := c.Changed()
	if err := os.Symlink(second, link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	await(t, "rotation", ch)
	if !bytes.Equal(encodeCert(c.set.Load().cert.Leaf), read(t, filepath.Join(second, CertFile))) {
		t.Error("the certificate in use is not the one behind the link")
	}
}

// TestReloadKeepsGood: a set that does not hold together changes nothing, is
// counted and logged once, and its repair is taken.
func TestReloadKeepsGood(t *testing.T) {
	ca, other := authority(t), authority(t)
	good := content(t, "a", ca, ca)
	for _, tc := range []struct {
		name string
		file string
		p    []byte
		want string
	}{
		{"missing file", KeyFile, nil, "no such file"},
		{"empty authority", CAFile, []byte{}, "no PEM certificate"},
		{"authority is garbage", CAFile, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "parse ca.crt"},
		{"authority is a leaf", CAFile, good[CertFile], "not an authority"},
		{"foreign authority", CAFile, encodeCert(other.Cert), "unknown authority"},
		{"key of another certificate", KeyFile, content(t, "a", ca, ca)[KeyFile], "does not match"},
		{"certificate without its key", CertFile, content(t, "a", ca, ca)[CertFile], "does not match"},
		{"gossip key too short", GossipFile, []byte("c2hvcnQ=\n"), "5 bytes"},
		{"gossip key not base64", GossipFile, []byte("!\n"), "not base64"},
		{"no gossip key", GossipFile, []byte("\n"), "no key"},
		{"huge file", CAFile, bytes.Repeat([]byte{'\n'}, maxFile+1), "larger than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, p := range good {
				write(t, filepath.Join(dir, name), p)
			}
			var log bytes.Buffer
			reg := prometheus.NewPedanticRegistry()
			c, err := Load(Config{Dir: dir, Cluster: cluster, Log: zerolog.New(&log), Registerer: reg})
			if err != nil {
				t.Fatal(err)
			}
			before := c.set.Load()
			log.Reset()

			path := filepath.Join(dir, tc.file)
			if tc.p == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				write(t, path, tc.p)
			}
			c.reload()
			c.reload()
			if c.set.Load() != before {
				t.Error("the bad set was taken")
			}
			if got := log.String(); strings.Count(got, "refused") != 1 || !strings.Contains(got, tc.want) {
				t.Errorf("log is %q, want it once with %q", got, tc.want)
			}
			if got := testutil.ToFloat64(c.metrics.reloads.WithLabelValues("error")); got != 1 {
				t.Errorf("%v errors counted", got)
			}
			if _, err := Load(Config{Dir: dir, Cluster: cluster, Log: zerolog.Nop()}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("a start with the bad set: %v", err)
			}

			for name, p := range content(t, "a", ca, ca) {
				write(t, filepath.Join(dir, name), p)
			}
			c.reload()
			if c.set.Load() == before {
				t.Error("the repaired set was not taken")
			}
			if got := testutil.ToFloat64(c.metrics.reloads.WithLabelValues("ok")); got != 1 {
				t.Errorf("%v rotations counted", got)
			}
		})
	}
}

func TestLoadWrongCluster(t *testing.T) {
	dir := issue(t, authority(t), "a")
	for cluster, want := range map[string]string{
		"other.example": "not for",
		"":              "empty",
		"a/b":           "not allowed",
	} {
		if _, err := Load(Config{Dir: dir, Cluster: cluster}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cluster %q: %v", cluster, err)
		}
	}
}

func TestExpiry(t *testing.T) {
	ca := authority(t)
	dir := issue(t, ca, "a")
	now := time.Now()
	var log bytes.Buffer
	reg := prometheus.NewPedanticRegistry()
	c, err := Load(Config{Dir: dir, Cluster: cluster, Log: zerolog.New(&log), Registerer: reg, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	left := func(certificate string) float64 {
		t.Helper()
		fs, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fs {
			for _, m := range f.Metric {
				if f.GetName() == "shoal_peer_certificate_expiry_seconds" && m.Label[0].GetValue() == certificate {
					return m.GetGauge().GetValue()
				}
			}
		}
		t.Fatalf("no metric for %s", certificate)
		return 0
	}
	now = c.set.Load().cert.Leaf.NotAfter.Add(-30 * time.Minute)
	if got := left("node"); got != 1800 {
		t.Errorf("half an hour before the end: %v s", got)
	}
	if got := left("authority"); got < 9*365*24*3600 {
		t.Errorf("the authority has %v s", got)
	}
	c.warnExpiry()
	if got := log.String(); strings.Contains(got, "expires soon") {
		t.Errorf("warned too early: %s", got)
	}
	now = now.Add(25 * time.Minute)
	c.warnExpiry()
	c.warnExpiry()
	if got := strings.Count(log.String(), "expires soon"); got != 1 {
		t.Errorf("warned %d times", got)
	}
	// Expired on both ends: refused by both, and the metric goes below zero.
	now = now.Add(time.Hour)
	if got := left("node"); got >= 0 {
		t.Errorf("after the end: %v s", got)
	}
	if s, cl := connect(t, c.ServerConfig(), c.ClientConfig()); s.err == nil || cl.err == nil {
		t.Errorf("expired certificates were accepted: %v, %v", s.err, cl.err)
	}
}

func TestGossipKeys(t *testing.T) {
	ca := authority(t)
	old := bytes.Repeat([]byte{7}, GossipKeyLength)
	ca.gossip = append(ca.gossip, old)
	c := load(t, issue(t, ca, "a"))
	if !bytes.Equal(c.GossipKey(), ca.gossip[0]) {
		t.Error("the first key is not the one that encrypts")
	}
	if !slices.EqualFunc(c.GossipKeys(), ca.gossip, bytes.Equal) {
		t.Error("keys differ from the file")
	}
	clear(c.GossipKeys()[0])
	clear(c.GossipKey())
	if !bytes.Equal(c.GossipKey(), ca.gossip[0]) {
		t.Error("a caller's change reached the credentials")
	}
	if _, err := parseGossipKeys(formatGossipKeys(make([][]byte, maxGossipKeys+1)...)); err == nil {
		t.Error("empty keys accepted")
	}
	many := slices.Repeat([][]byte{old}, maxGossipKeys+1)
	if _, err := parseGossipKeys(formatGossipKeys(many...)); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%d keys: %v", len(many), err)
	}
}
