package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAs: somebody else's header goes to the registry that it is for, as it
// is, and nowhere else: not to another registry, not along a redirect, and not
// to a token service.
func TestAs(t *testing.T) {
	const header = "Bearer s0mebody-elses"
	var mu sync.Mutex
	seen := map[string][]string{} // server → Authorization headers
	note := func(server string, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[server] = append(seen[server], r.Header.Get("Authorization"))
	}
	p, d := content(1000)
	store := serve(t, func(w http.ResponseWriter, r *http.Request) {
		note("store", r)
		serveBytes(w, r, p)
	})
	realm := serve(t, func(w http.ResponseWriter, r *http.Request) { note("realm", r) })
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		note("registry", r)
		if strings.Contains(r.URL.Path, "/refused/") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+realm+`/token",service="s",error="insufficient_scope"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, "http://"+store+"/x", http.StatusTemporaryRedirect)
	})
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		note("other", r)
		serveBytes(w, r, p)
	})
	path := dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"node","password":"n0des"}}}`)
	node := newClient(t, Config{DockerConfig: path}, host, store, realm, other)
	c := node.As(host, header)

	if got, err := read(t.Context(), c.Blob(Repository{host, "a"}, d, 1000), 0, 10); err != nil || len(got) != 10 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := read(t.Context(), c.Blob(Repository{other, "a"}, d, 1000), 0, 10); err != nil {
		t.Error(err)
	}
	_, err := c.Head(t.Context(), Repository{host, "refused/a"}, "v1")
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrDenied) {
		t.Fatalf("refused: %v", err)
	}
	noSecret(t, fmt.Sprintf("%v %+v %#v", err, c.auth, c.auth), "s0mebody-elses")
	if diff := cmp.Diff([]string{`Bearer realm="http://` + realm + `/token",service="s",error="insufficient_scope"`}, e.Challenges); diff != "" {
		t.Error(diff)
	}
	want := map[string][]string{"registry": {header, header}, "store": {""}, "other": {""}}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("who saw what:\n%s", diff)
	}
}

// TestAnonymous shows nothing of the node's credentials, to whomever.
func TestAnonymous(t *testing.T) {
	p, d := content(1000)
	g := newGuarded(t, func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p) })
	g.grant = func(r *http.Request) bool { return r.Header.Get("Authorization") != "" }
	path := dockerConfigFile(t, `{"auths":{"`+g.host+`":{"username":"node","password":"n0des"}}}`)
	node := newClient(t, Config{DockerConfig: path}, g.host, g.realm)
	repo := Repository{g.host, "a/b"}
	for range 2 { // also after the node has a token
		_, err := node.Anonymous().Blob(repo, d, 1000).Size(t.Context())
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, ErrDenied) {
			t.Fatalf("anonymous: %v", err)
		}
		// Upstream's own challenge, although the token service refused.
		want := []string{fmt.Sprintf(`Bearer realm="http://%s/token?x=y",service="s",scope="repository:a/b:pull"`, g.realm)}
		if diff := cmp.Diff(want, e.Challenges); diff != "" {
			t.Error(diff)
		}
		if n, err := node.Blob(repo, d, 1000).Size(t.Context()); err != nil || n != 1000 {
			t.Errorf("the node: %d, %v", n, err)
		}
	}
}

// TestRelay: which challenges a client on this node is given, and in which
// words.
func TestRelay(t *testing.T) {
	c := newClient(t, Config{Local: []string{"localhost:9"}}, "plain.test", "127.0.0.1:5000", "auth.plain.test:81")
	bearer := func(realm string) string { return `Bearer realm="` + realm + `",service="s"` }
	for name, tt := range map[string]struct {
		registry, in string
		want         string // empty: none
	}{
		"basic":                     {in: `Basic realm="my registry", charset="UTF-8"`, want: `Basic realm="my registry"`},
		"basic without a realm":     {in: `Basic`, want: `Basic`},
		"bearer of the registry":    {in: bearer("https://r.test/token"), want: bearer("https://r.test/token")},
		"what clients do not need":  {in: bearer("https://r.test/token") + `,x="y",error="invalid_token"`, want: bearer("https://r.test/token") + `,error="invalid_token"`},
		"public address":            {in: bearer("https://8.8.8.8/token"), want: bearer("https://8.8.8.8/token")},
		"private network":           {in: bearer("https://10.0.0.1/token"), want: bearer("https://10.0.0.1/token")},
		"fragment":                  {in: bearer("https://r.test/token#x"), want: bearer("https://r.test/token")},
		"another scheme":            {in: `Negotiate`},
		"no realm":                  {in: `Bearer service="s"`},
		"no host":                   {in: bearer("https:///x")},
		"file":                      {in: bearer("file:///etc/passwd")},
		"password within":           {in: bearer("https://u:p@r.test/")},
		"plain http":                {in: bearer("http://r.test/token")},
		"plain http, named":         {in: bearer("http://plain.test/token")},
		"plain registry":            {registry: "plain.test", in: bearer("http://plain.test/token"), want: bearer("http://plain.test/token")},
		"plain registry, elsewhere": {registry: "plain.test", in: bearer("http://evil.test/token")},
		"plain registry, named":     {registry: "plain.test", in: bearer("http://auth.plain.test:81/token"), want: bearer("http://auth.plain.test:81/token")},
		"loopback":                  {in: bearer("https://127.0.0.1/token")},
		"loopback by name":          {in: bearer("https://localhost/token")},
		"loopback, named":           {in: bearer("https://localhost:9/token"), want: bearer("https://localhost:9/token")},
		"loopback, the upstream":    {registry: "127.0.0.1:5000", in: bearer("http://127.0.0.1:5000/token"), want: bearer("http://127.0.0.1:5000/token")},
		"loopback, another port":    {registry: "127.0.0.1:5000", in: bearer("http://127.0.0.1:10250/token")},
		"metadata":                  {in: bearer("https://169.254.169.254/latest")},
		"metadata in IPv6":          {in: bearer("https://[fd00:ec2::254]/latest")},
		"mapped":                    {in: bearer("https://[::ffff:127.0.0.1]/")},
		"unspecified":               {in: bearer("https://0.0.0.0/")},
		"unknown name":              {in: bearer("https://nonesuch.invalid/")},
		"quote":                     {in: `Bearer realm="https://r.test/token",service="a\"b"`},
		"backslash":                 {in: `Basic realm="a\\b"`},
		"line break":                {in: "Basic realm=\"a\r\nSet-Cookie: b\""},
	} {
		t.Run(name, func(t *testing.T) {
			registry := tt.registry
			if registry == "" {
				registry = "r.test"
			}
			var got string
			for _, demand := range parseChallenges([]string{tt.in}) {
				got, _ = c.relay(t.Context(), Repository{registry, "a"}, demand)
			}
			if got != tt.want {
				t.Errorf("%q becomes %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

// FuzzRelay: whatever a registry demands, what clients are told is well formed,
// and no realm leads where it must not.
func FuzzRelay(f *testing.F) {
	for _, s := range []string{
		`Basic realm="x"`, `Bearer realm="https://r.test/b",service=c,scope="d,e"`, `Bearer realm="https://127.0.0.1/"`,
		`Bearer realm="https://r.test/\"x"`, "Basic realm=\"a\x01\"", `Bearer realm="HTTPS://R.TEST:0443?x"`,
	} {
		f.Add(s)
	}
	// No name is resolved: the proxy is there for that.
	proxy := &url.URL{Scheme: "http", Host: "proxy.test"}
	c := newClient(f, Config{Proxy: func(*http.Request) (*url.URL, error) { return proxy, nil }})
	f.Fuzz(func(t *testing.T, s string) {
		for _, demand := range parseChallenges([]string{s}) {
			text, err := c.relay(t.Context(), Repository{"r.test", "a"}, demand)
			if err != nil {
				continue
			}
			again := parseChallenges([]string{text})
			if len(again) != 1 || again[0].scheme != demand.scheme || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("%q becomes %q", s, text)
			}
			for name := range again[0].params {
				if !slices.Contains(relayed, name) {
					t.Fatalf("%q becomes %q with %s", s, text, name)
				}
			}
			if demand.scheme != "bearer" {
				continue
			}
			u, err := url.Parse(again[0].params["realm"])
			if err != nil || u.Scheme != "https" || u.User != nil {
				t.Fatalf("%q becomes %q", s, text)
			}
		}
	})
}
