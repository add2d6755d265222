package mirror

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// The secrets of these tests. The node's own are not the pod's.
const (
	podPassword  = "p0d-s3cret"
	nodePassword = "n0de-s3cret"
	tokenPrefix  = "t0ken-s3cret-"
)

// keeper guards a registry: repositories below private/ want credentials, Basic
// or tokens of its token service.
type keeper struct {
	reg   *testRegistry
	basic bool
	realm string // of the token service

	blobBytes atomic.Int64 // of layers and configs that left the registry
	mu        sync.Mutex
	tokens    map[string]string // → user
	passwords map[string]string // user → password
	issued    int
}

func newKeeper(t *testing.T, basic bool) *keeper {
	k := &keeper{
		reg: newRegistry(t), basic: basic, tokens: map[string]string{},
		passwords: map[string]string{"pod": podPassword, "node": nodePassword},
	}
	service := httptest.NewServer(http.HandlerFunc(k.token))
	t.Cleanup(service.Close)
	k.realm = service.Listener.Addr().String()
	return k
}

// lock closes the door, after images were pushed.
func (k *keeper) lock() { k.reg.guard(k.admit) }

// token is the token service. As Docker Hub's, it gives everybody a token,
// which is good for what its user may pull.
func (k *keeper) token(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	user, password, ok := r.BasicAuth()
	if ok && (password == "" || k.passwords[user] != password) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.issued++
	token := tokenPrefix + fmt.Sprint(k.issued)
	k.tokens[token] = user
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
}

func (k *keeper) admit(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasPrefix(r.URL.Path, "/v2/private/") {
		return k.count(r)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.basic {
		if user, password, ok := r.BasicAuth(); ok && password != "" && k.passwords[user] == password {
			return k.count(r)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="keeper"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	user, known := k.tokens[token]
	if known && user != "" {
		return k.count(r)
	}
	failure := ""
	if known {
		failure = `,error="insufficient_scope"`
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+k.realm+`/token",service="keeper",scope="repository:private:pull"`+failure)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// count lets a request in.
func (k *keeper) count(r *http.Request) bool {
	var from, to int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil && r.Method == http.MethodGet {
		k.blobBytes.Add(to - from + 1)
	}
	return true
}

// dismiss takes a user's rights away.
func (k *keeper) dismiss(user string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.passwords, user)
	for token, u := range k.tokens {
		if u == user {
			delete(k.tokens, token)
		}
	}
}

// upstreams is the real client, with the node's credentials.
func (k *keeper) upstreams(t *testing.T, log zerolog.Logger) Upstreams {
	t.Helper()
	file := filepath.Join(t.TempDir(), "node-config.json")
	text := `{"auths":{"` + k.reg.name + `":{"username":"node","password":"` + nodePassword + `"}}}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{
		Insecure: []string{k.reg.name, k.realm}, DockerConfig: file,
		Retry: upstream.Retry{Attempts: 1}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return FromClient(c)
}

// mirror serves on a node.
func (k *keeper) mirror(t *testing.T, s Swarm, change func(*Config)) *testMirror {
	t.Helper()
	return newMirror(t, s, nil, func(c *Config) {
		c.Upstream = k.upstreams(t, c.Log)
		if change != nil {
			change(c)
		}
	}, k.reg.name)
}

// puller does as containerd: it asks without credentials, answers a challenge
// with its password or a token, and keeps to that for the rest of the pull.
type puller struct {
	user, password string
	authorization  string
}

func (p *puller) get(t *testing.T, tm *testMirror, method, target string, header ...string) reply {
	t.Helper()
	for range 2 {
		h := header
		if p.authorization != "" {
			h = append(h[:len(h):len(h)], "Authorization", p.authorization)
		}
		r := tm.do(t, method, target, h...)
		if r.status != http.StatusUnauthorized || !p.answer(t, r.header.Get("WWW-Authenticate")) {
			return r
		}
	}
	return tm.do(t, method, target, append(header[:len(header):len(header)], "Authorization", p.authorization)...)
}

func (p *puller) answer(t *testing.T, challenge string) bool {
	t.Helper()
	if p.authorization != "" {
		return false
	}
	if strings.HasPrefix(challenge, "Basic ") {
		p.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))
		return p.user != ""
	}
	_, rest, _ := strings.Cut(challenge, `Bearer realm="`)
	realm, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("challenge %q", challenge)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, realm, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.user != "" {
		req.SetBasicAuth(p.user, p.password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	defer resp.Body.Close()
	var answer struct{ Token string }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return false
	}
	p.authorization = "Bearer " + answer.Token
	return true
}

// pull gets a whole image.
func (p *puller) pull(t *testing.T, tm *testMirror, k *keeper, img image) {
	t.Helper()
	head := p.get(t, tm, http.MethodHead, img.manifestURL(k.reg, "v1"))
	if head.status != http.StatusOK {
		t.Errorf("head: %d", head.status)
		return
	}
	if r := p.get(t, tm, http.MethodGet, img.manifestURL(k.reg, head.header.Get("Docker-Content-Digest"))); r.status != http.StatusOK || !bytes.Equal(r.body, img.manifest) {
		t.Errorf("manifest: %d", r.status)
	}
	for d, content := range img.content {
		if r := p.get(t, tm, http.MethodGet, "/v2/"+img.repo+"/blobs/"+d.String()+"?ns="+k.reg.name); r.status != http.StatusOK || !bytes.Equal(r.body, content) {
			t.Errorf("blob: %d, %d bytes, %v", r.status, len(r.body), r.err)
		}
	}
}

func pod() *puller { return &puller{user: "pod", password: podPassword} }

// refused checks that nothing of an image is given to p, in any way, and that
// it hears the challenge.
func (p *puller) refused(t *testing.T, tm *testMirror, k *keeper, img image) {
	t.Helper()
	for _, target := range []string{
		img.manifestURL(k.reg, "v1"), img.manifestURL(k.reg, img.desc.Digest.String()),
		img.blobURL(k.reg, img.layers[0]), img.blobURL(k.reg, img.config),
	} {
		for _, header := range [][]string{nil, {"Range", "bytes=0-9"}} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				r := p.get(t, tm, method, target, header...)
				scheme := "Bearer realm="
				if k.basic {
					scheme = "Basic realm="
				}
				if r.status != http.StatusUnauthorized || !strings.HasPrefix(r.header.Get("WWW-Authenticate"), scheme) || len(r.body) > 1000 || r.header.Get("Docker-Content-Digest") != "" {
					t.Errorf("%+v: %s %s %q: %d %v %.200q", *p, method, target, header, r.status, r.header, r.body)
				}
			}
		}
	}
}

// TestPrivateImage: with the pod's own credential alone, four nodes pull a
// private image cold, one copy leaves the registry, and who has no right gets
// upstream's answer and nothing else, also where the image lies. No secret is
// found anywhere afterwards.
func TestPrivateImage(t *testing.T) {
	for _, basic := range []bool{false, true} {
		t.Run(fmt.Sprintf("basic=%t", basic), func(t *testing.T) {
			k := newKeeper(t, basic)
			img := k.reg.pushImage(t, "private/app", "v1", 3<<20, 2<<20, 900_000, 1000)
			k.lock()
			tap := &logBuffer{}
			// Copies are counted: no node may lose its patience on a busy machine.
			c := &cluster{tap: tap, patience: 20 * time.Second}
			var mirrors []*testMirror
			for range 4 {
				mirrors = append(mirrors, k.mirror(t, c.join(t), nil))
			}
			var wg sync.WaitGroup
			for _, tm := range mirrors {
				wg.Go(func() { pod().pull(t, tm, k, img) })
			}
			wg.Wait()
			var size int64
			for _, p := range img.content {
				size += int64(len(p))
			}
			if copies := float64(k.blobBytes.Load()) / float64(size); copies > 1.1 {
				t.Errorf("%.2f copies left the registry", copies)
			}
			strangers := func() map[string]*puller {
				return map[string]*puller{
					"anonymous": {}, "wrong password": {user: "pod", password: "wr0ng"},
					"made up": {authorization: "Bearer made-up"}, "made up Basic": {authorization: "Basic eDp5"},
				}
			}
			for _, p := range strangers() {
				p.refused(t, mirrors[0], k, img)
			}
			// One question decides for a caller and a repository, for a while.
			k.reg.requests()
			p := pod()
			p.pull(t, mirrors[1], k, img)
			if got := k.reg.requests(); len(got) > 2 {
				t.Errorf("a pull of what is here cost %q", got)
			}
			for name, text := range map[string]string{
				"log": mirrors[0].log.String() + mirrors[1].log.String(), "metrics": mirrors[0].metrics(t), "peers": tap.String(),
			} {
				noSecrets(t, name, text, p.authorization)
			}
			if !strings.Contains(tap.String(), img.layers[0].Digest.String()) {
				t.Error("nothing was overheard")
			}
			files := 0
			err := filepath.WalkDir(filepath.Dir(t.TempDir()), func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() || e.Name() == "node-config.json" {
					return err
				}
				files++
				text, err := os.ReadFile(path)
				noSecrets(t, path, string(text), p.authorization)
				return err
			})
			if err != nil || files == 0 {
				t.Errorf("%d files on disk, %v", files, err)
			}
		})
	}
}

// noSecrets looks for passwords and tokens in text, in the forms in which they
// travel.
func noSecrets(t *testing.T, where, text string, more ...string) {
	t.Helper()
	for _, s := range append([]string{podPassword, nodePassword, tokenPrefix}, more...) {
		_, value, ok := strings.Cut(s, " ")
		if !ok {
			value = s
		}
		b64 := base64.StdEncoding.EncodeToString([]byte("pod:" + s))
		for _, form := range []string{s, value, url.QueryEscape(value), b64} {
			if i := strings.Index(text, form); i >= 0 {
				t.Errorf("%s tells the secret %q: %.200q", where, form, text[max(0, i-80):])
			}
		}
	}
}

// metrics is what a scrape would read.
func (tm *testMirror) metrics(t *testing.T) string {
	t.Helper()
	fams, err := tm.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range fams {
		b.WriteString(f.String())
	}
	return b.String()
}

// TestTokenEnds: a token that ends in the middle of a blob costs the client one
// more request, with a new token, and nothing is fetched twice.
func TestTokenEnds(t *testing.T) {
	k := newKeeper(t, false)
	img := k.reg.pushImage(t, "private/app", "v1", 8<<20)
	layer := img.layers[0]
	reading := make(chan struct{}) // the client has the first byte
	var once sync.Once
	k.reg.guard(func(w http.ResponseWriter, r *http.Request) bool {
		// By where a range ends: a node whose patience is over takes 4 MiB at a
		// time, from anywhere.
		var from, to int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil && to > layer.Size/2 {
			<-reading
			once.Do(func() {
				k.mu.Lock()
				defer k.mu.Unlock()
				clear(k.tokens)
			})
		}
		return k.admit(w, r)
	})
	tm := k.mirror(t, new(cluster).join(t), nil)
	p := pod()
	p.get(t, tm, http.MethodHead, img.manifestURL(k.reg, "v1"))
	conn := dialRaw(t, tm, "GET "+img.blobURL(k.reg, layer)+" HTTP/1.1\r\nHost: x\r\nAuthorization: "+p.authorization+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	var first [1]byte
	if _, err := io.ReadFull(resp.Body, first[:]); err != nil {
		t.Fatal(err)
	}
	close(reading)
	more, err := io.ReadAll(resp.Body) // it ends early, with FIN
	got := append(first[:], more...)
	if !errors.Is(err, io.ErrUnexpectedEOF) || int64(len(got)) >= layer.Size {
		t.Fatalf("%d bytes, %v: the token did not end", len(got), err)
	}
	rest := "bytes=" + fmt.Sprint(len(got)) + "-"
	if r := tm.do(t, http.MethodGet, img.blobURL(k.reg, layer), "Range", rest, "Authorization", p.authorization); r.status != http.StatusUnauthorized {
		t.Errorf("the token that ended: %d", r.status)
	}
	p.authorization = ""
	r := p.get(t, tm, http.MethodGet, img.blobURL(k.reg, layer), "Range", rest)
	if got = append(got, r.body...); r.status != http.StatusPartialContent || !bytes.Equal(got, img.content[layer.Digest]) {
		t.Errorf("the rest: %d, %d bytes, %v", r.status, len(r.body), r.err)
	}
	if n := tm.counted(t, "shoal_mirror_fallbacks_total", "reason", reasonCutDenied); n != 1 {
		t.Errorf("%v bodies cut", n)
	}
	if copies := float64(k.blobBytes.Load()) / float64(layer.Size); copies > 1.3 {
		t.Errorf("%.2f copies left the registry", copies)
	}
}

// TestRightsEnd: a decision holds for GrantTTL and no longer, for the caller
// and the repository that it was made for.
func TestRightsEnd(t *testing.T) {
	for _, basic := range []bool{false, true} {
		k := newKeeper(t, basic)
		img := k.reg.pushImage(t, "private/app", "v1", 1000)
		other := k.reg.pushImage(t, "private/other", "v1", 2000)
		k.lock()
		const ttl = 2 * time.Second
		tm := k.mirror(t, new(cluster).join(t), func(c *Config) { c.GrantTTL = ttl })
		p := pod()
		p.pull(t, tm, k, img)
		began := time.Now()
		k.dismiss("pod")
		if r := p.get(t, tm, http.MethodGet, img.blobURL(k.reg, img.layers[0])); r.status != http.StatusOK && time.Since(began) < ttl/2 {
			t.Errorf("within GrantTTL: %d", r.status)
		}
		p.refused(t, tm, k, other)
		time.Sleep(ttl)
		p.refused(t, tm, k, img)
	}
}

// TestPrivateInAnOutage: an outage opens nothing to anybody, and what it leaves
// open is a setting.
func TestPrivateInAnOutage(t *testing.T) {
	for _, tt := range []struct {
		outage Outage
		want   int
	}{{OutageDeny, http.StatusNotFound}, {OutageAllowRecent, http.StatusOK}} {
		k := newKeeper(t, true)
		img := k.reg.pushImage(t, "private/app", "v1", 1<<20)
		k.lock()
		c := new(cluster)
		node, fresh := c.join(t), c.join(t)
		set := func(c *Config) { c.Outage, c.GrantTTL = tt.outage, time.Millisecond }
		tm, next := k.mirror(t, node, set), k.mirror(t, fresh, set)
		recent := pod()
		recent.pull(t, tm, k, img)
		if r := tm.do(t, http.MethodGet, img.manifestURL(k.reg, "v1")); r.status != http.StatusUnauthorized {
			t.Fatalf("anonymous: %d", r.status)
		}
		k.reg.answer(http.StatusServiceUnavailable)
		time.Sleep(10 * time.Millisecond)
		targets := []string{
			img.manifestURL(k.reg, "v1"), img.manifestURL(k.reg, img.desc.Digest.String()),
			img.blobURL(k.reg, img.layers[0]), img.blobURL(k.reg, img.config),
		}
		for _, target := range targets {
			if r := recent.get(t, tm, http.MethodGet, target); r.status != tt.want {
				t.Errorf("%s: who was let in a moment ago: %d, want %d: %.200s", tt.outage, r.status, tt.want, r.body)
			}
			for name, who := range map[string]*testMirror{"the node": tm, "another node": next} {
				for _, auth := range []string{"", "Basic eDp5", "Bearer x"} {
					if r := who.do(t, http.MethodGet, target, "Authorization", auth); r.status == http.StatusOK {
						t.Errorf("%s, %s: %q is let in", tt.outage, name, auth)
					}
				}
			}
			// On another node, nobody knows that it was let in.
			if r := next.do(t, http.MethodGet, target, "Authorization", recent.authorization); r.status == http.StatusOK {
				t.Errorf("%s: let in without anybody's word", tt.outage)
			}
		}
	}
}

// TestPublicInAnOutage: what anybody may pull can be pulled without the
// registry too, on a node that never asked, by tag and by digest.
func TestPublicInAnOutage(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*Config)
		want int
	}{
		"allow":    {func(c *Config) { c.Outage = OutageAllowRecent }, http.StatusOK},
		"deny":     {func(c *Config) { c.Outage = OutageDeny }, http.StatusNotFound},
		"long ago": {func(c *Config) { c.OutageGrace = time.Nanosecond }, http.StatusNotFound},
	} {
		for _, byDigest := range []bool{false, true} {
			k := newKeeper(t, true)
			img := k.reg.pushImage(t, "public/app", "v1", 1<<20, 1000)
			k.lock()
			c := new(cluster)
			one, two := k.mirror(t, c.join(t), nil), k.mirror(t, c.join(t), tt.set)
			new(puller).pull(t, one, k, img)
			eventually(t, "the cluster knows the blobs", func() bool {
				for _, d := range []digest.Digest{img.desc.Digest, img.layers[0].Digest, img.config.Digest} {
					if _, n, err := two.cfg.Swarm.Locate(t.Context(), d); err != nil || n == 0 {
						return false
					}
				}
				return true
			})
			k.reg.answer(http.StatusServiceUnavailable)
			ref := "v1"
			if byDigest {
				ref = img.desc.Digest.String()
			}
			for _, target := range []string{img.manifestURL(k.reg, ref), img.blobURL(k.reg, img.config), img.blobURL(k.reg, img.layers[0]), img.blobURL(k.reg, img.layers[1])} {
				if r := two.do(t, http.MethodGet, target); r.status != tt.want {
					t.Errorf("%s, by digest %t: %s: %d %.200s", name, byDigest, target, r.status, r.body)
				}
			}
		}
	}
}

// TestNodeCredentials: where the operator says so, everybody has what the node
// may have, and no challenge gets through.
func TestNodeCredentials(t *testing.T) {
	for _, basic := range []bool{false, true} {
		k := newKeeper(t, basic)
		img := k.reg.pushImage(t, "private/app", "v1", 1000)
		k.lock()
		for _, auth := range []Authorization{AuthorizeNode, AuthorizeNone} {
			tm := k.mirror(t, new(cluster).join(t), func(c *Config) {
				c.GrantTTL = time.Millisecond
				c.Authorization = map[string]Authorization{k.reg.name: auth}
			})
			new(puller).pull(t, tm, k, img)
			noSecrets(t, "log", tm.log.String())
			k.dismiss("node")
			time.Sleep(10 * time.Millisecond)
			r := tm.do(t, http.MethodGet, img.blobURL(k.reg, img.layers[0]))
			if want := map[Authorization]int{AuthorizeNode: http.StatusNotFound, AuthorizeNone: http.StatusOK}[auth]; r.status != want || r.header.Get("WWW-Authenticate") != "" {
				t.Errorf("%s, the node's rights ended: %d, want %d", auth, r.status, want)
			}
			// None does not open other repositories.
			if r := tm.do(t, http.MethodGet, "/v2/public/app/blobs/"+img.layers[0].Digest.String()+"?ns="+k.reg.name); r.status != http.StatusNotFound {
				t.Errorf("%s, by another repository: %d", auth, r.status)
			}
			k.mu.Lock()
			k.passwords["node"] = nodePassword
			k.mu.Unlock()
		}
	}
}

func TestRules(t *testing.T) {
	r, err := newRules(map[string]Authorization{
		"*": AuthorizeNode, "*.example.com": AuthorizeNone, "*.b.example.com": AuthorizeUpstream,
		"a.example.com": AuthorizeUpstream, "R.test:5000": AuthorizeNone,
	})
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]Authorization{
		"docker.io": AuthorizeNode, "x.example.com": AuthorizeNone, "a.example.com": AuthorizeUpstream,
		"x.b.example.com": AuthorizeUpstream, "r.test:5000": AuthorizeNone, "r.test": AuthorizeNode, "10.0.0.1:5000": AuthorizeNode,
	} {
		if got := r.of(registry); got != want {
			t.Errorf("%s: %s, want %s", registry, got, want)
		}
	}
	if r, err := newRules(nil); err != nil || r.of("docker.io") != AuthorizeUpstream {
		t.Errorf("without rules: %v", err)
	}
	for pattern, auth := range map[string]Authorization{"docker.io": "yes", "*": "", "a/b": AuthorizeNode, "[": AuthorizeNode} {
		if _, err := newRules(map[string]Authorization{pattern: auth}); err == nil {
			t.Errorf("%s=%s is accepted", pattern, auth)
		}
	}
}

// TestCallerIDs differ by credential, repository, registry and process, and do
// not show the credential.
func TestCallerIDs(t *testing.T) {
	a, err := newCallers(sole{yes{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newCallers(sole{yes{}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range []*callers{a, b} {
		for _, repo := range []Repository{{Registry: "r", Name: "a"}, {Registry: "r", Name: "b"}, {Registry: "ra", Name: "a"}} {
			for _, header := range []string{"Bearer " + tokenPrefix, "Bearer x", "Basic x"} {
				who, err := c.identify(repo, []string{header})
				if err != nil || seen[who.id] || len(who.id) != 64 {
					t.Errorf("%s, %s: id %q, %v", repo, header, who.id, err)
				}
				seen[who.id] = true
				again, _ := c.identify(repo, []string{header})
				if again.id != who.id {
					t.Error("the same caller has two ids")
				}
				noSecrets(t, "question", fmt.Sprint(question{repo: repo, who: who}))
			}
		}
	}
}

// TestRefusedByUpstream: which refusals are passed on, and how.
func TestRefusedByUpstream(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		auth   string
		status int
		reason string
	}{
		"challenge":                     {&upstream.Error{Status: 401, Challenges: []string{"Basic"}}, "", 401, reasonDenied},
		"forbidden":                     {&upstream.Error{Status: 403}, "Bearer x", 403, reasonDenied},
		"no challenge":                  {&upstream.Error{Status: 401}, "", 404, reasonDenied},
		"not an answer of the registry": {upstream.ErrDenied, "", 404, reasonDenied},
	} {
		m := asMiss(fmt.Errorf("ask: %w: %w", upstream.ErrDenied, c.err), codeBlobUnknown)
		m.relay(false)
		if m.httpStatus() != c.status || m.reason != c.reason {
			t.Errorf("%s: %d %s, want %d %s", name, m.httpStatus(), m.reason, c.status, c.reason)
		}
	}
	m := asMiss(fmt.Errorf("ask: %w", swarm.ErrNotFound), codeBlobUnknown)
	m.relay(true)
	if m.httpStatus() != http.StatusNotFound || m.reason != reasonNotFound {
		t.Errorf("not found: %+v", m)
	}
}
