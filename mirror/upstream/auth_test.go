package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
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

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/swarm"
)

// guarded is a registry that wants Bearer tokens, with its token service on
// another port.
type guarded struct {
	host, realm string
	mu          sync.Mutex
	valid       map[string]bool // tokens
	issued      int
	expiresIn   int
	// grant decides on a token request; default: everyone.
	grant  func(r *http.Request) bool
	seen   []string // token requests
	answer http.HandlerFunc
}

func newGuarded(t *testing.T, answer http.HandlerFunc) *guarded {
	g := &guarded{valid: map[string]bool{}, expiresIn: 300, answer: answer}
	g.realm = serve(t, func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		_ = r.ParseForm()
		user, password, _ := r.BasicAuth()
		g.seen = append(g.seen, fmt.Sprintf("%s %s %s:%s", r.Method, r.Form.Encode(), user, password))
		if g.grant != nil && !g.grant(r) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		g.issued++
		token := fmt.Sprintf("t0ken-%d", g.issued)
		g.valid[token] = true
		_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": g.expiresIn})
	})
	g.host = serve(t, func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		g.mu.Lock()
		ok := g.valid[token]
		g.mu.Unlock()
		if !ok {
			repo := strings.TrimPrefix(r.URL.Path, "/v2/")
			repo, _, _ = strings.Cut(repo, "/manifests/")
			repo, _, _ = strings.Cut(repo, "/blobs/")
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token?x=y",service="s",scope="repository:%s:pull"`, g.realm, repo))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		g.answer(w, r)
	})
	return g
}

func (g *guarded) revoke() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.valid)
}

func dockerConfigFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBearer(t *testing.T) {
	p, d := content(1000)
	g := newGuarded(t, func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p) })
	now := time.Unix(1000, 0)
	c := newClient(t, Config{Now: func() time.Time { return now }}, g.host, g.realm)
	b := c.Blob(Repository{g.host, "a/b"}, d, 1000)
	get := func(b *Blob, issued int) {
		t.Helper()
		if _, err := read(t.Context(), b, 0, 10); err != nil {
			t.Error(err)
		}
		if g.issued != issued {
			t.Errorf("%d tokens issued, want %d", g.issued, issued)
		}
	}

	// A crowd gets one token.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := read(t.Context(), b, 0, 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	get(b, 1)
	// Each repository has its own.
	get(c.Blob(Repository{g.host, "c"}, d, 1000), 2)
	get(b, 2)
	// It is renewed before it expires, without a refusal.
	now = now.Add(239 * time.Second)
	get(b, 2)
	now = now.Add(time.Second)
	get(b, 3)
	// A renewal that fails leaves the old one in use while it holds.
	now = now.Add(250 * time.Second)
	g.mu.Lock()
	g.grant = func(*http.Request) bool { return false }
	g.mu.Unlock()
	get(b, 3)
	g.mu.Lock()
	g.grant = nil
	g.mu.Unlock()
	get(b, 4)
	// One that the registry refuses all of a sudden is replaced.
	g.revoke()
	get(b, 5)

	want := []string{
		"GET scope=repository%3Aa%2Fb%3Apull&service=s&x=y :",
		"GET scope=repository%3Ac%3Apull&service=s&x=y :",
	}
	if diff := cmp.Diff(want, g.seen[:2]); diff != "" {
		t.Error(diff)
	}
}

func TestCredentialsReachTheirRegistryOnly(t *testing.T) {
	const password, identity = "pa55-word", "1dentity-token"
	for _, tt := range []struct {
		name   string
		config string
		want   string // request at the token service, without the scope
	}{
		{"password", `{"auths":{"HOST":{"username":"bob","password":"` + password + `"}}}`, "GET account=bob&SCOPE&service=s&x=y bob:" + password},
		{"identity token", `{"auths":{"HOST":{"identitytoken":"` + identity + `"}}}`, "POST client_id=shoal&grant_type=refresh_token&refresh_token=" + identity + "&SCOPE&service=s&x=y :"},
		{"of another registry", `{"auths":{"other.test":{"username":"bob","password":"` + password + `"}}}`, "GET SCOPE&service=s&x=y :"},
		{"of another repository", `{"auths":{"HOST/c":{"username":"bob","password":"` + password + `"}}}`, "GET SCOPE&service=s&x=y :"},
		{"broken entry", `{"auths":{"HOST":{"auth":"` + password + `"}}}`, "GET SCOPE&service=s&x=y :"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log syncBuffer
			store := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if len(r.Header.Values("Authorization")) > 0 {
					t.Errorf("object store sees %v", r.Header)
				}
				w.WriteHeader(http.StatusInternalServerError)
			})
			g := newGuarded(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://"+store+"/blob?X-Amz-Signature=s1gnature", http.StatusTemporaryRedirect)
			})
			path := dockerConfigFile(t, strings.ReplaceAll(tt.config, "HOST", g.host))
			c := newClient(t, Config{DockerConfig: path, Log: debugLog(&log)}, g.host, g.realm, store)
			_, d := content(1)
			_, err := read(t.Context(), c.Blob(Repository{g.host, "a"}, d, 1), 0, 1)
			if !errors.Is(err, swarm.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			want := strings.Replace(tt.want, "SCOPE", "scope=repository%3Aa%3Apull", 1)
			if diff := cmp.Diff([]string{want}, g.seen); diff != "" {
				t.Error(diff)
			}
			noSecret(t, fmt.Sprintf("%v %+v %#v", err, err, err), password, identity, "t0ken", "s1gnature")
			noSecret(t, log.String(), password, identity, "t0ken", "s1gnature")
			if !strings.Contains(log.String(), "trying again") {
				t.Errorf("nothing logged, so nothing shown: %s", log.String())
			}
		})
	}
}

func TestBasic(t *testing.T) {
	const password = "pa55-word"
	var requests atomic.Int64
	wanted := password
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if user, p, ok := r.BasicAuth(); !ok || user != "bob" || p != wanted {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.NotFound(w, r)
	})
	repo := Repository{host, "a"}
	path := dockerConfigFile(t, `{"auths":{"`+host+`":{"auth":"Ym9iOnBhNTUtd29yZA=="}}}`)
	c := newClient(t, Config{DockerConfig: path}, host)
	for want := range 3 {
		if _, err := c.Head(t.Context(), repo, "x"); !errors.Is(err, swarm.ErrNotFound) {
			t.Error(err)
		}
		if got := requests.Load(); got != int64(want+2) {
			t.Errorf("%d requests, want %d", got, want+2)
		}
	}
	// The password changes, first there and then here.
	wanted = "n3w"
	if _, err := c.Head(t.Context(), repo, "x"); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(`{"auths":{"`+host+`":{"username":"bob","password":"n3w"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Head(t.Context(), repo, "x"); !errors.Is(err, swarm.ErrNotFound) {
		t.Error(err)
	}
	// Without credentials there is nothing to try again with.
	requests.Store(0)
	if _, err := newClient(t, Config{}, host).Head(t.Context(), repo, "x"); !errors.Is(err, ErrDenied) || requests.Load() != 1 {
		t.Errorf("%d requests, %v", requests.Load(), err)
	}
}

func TestHostileChallenges(t *testing.T) {
	_, d := content(1)
	evil := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("request at the wrong place: %v %v", r.URL, r.Header)
	})
	for _, tt := range []struct {
		name, challenge string
		want            error
	}{
		{"realm over plain http elsewhere", `Bearer realm="http://` + evil + `/"`, ErrInvalid},
		{"realm of another scheme", `Bearer realm="file:///etc/passwd"`, ErrInvalid},
		{"realm with a user", `Bearer realm="https://a:b@` + evil + `/"`, ErrInvalid},
		{"no realm", `Bearer service="x"`, ErrInvalid},
		{"realm at loopback", `Bearer realm="https://` + evil + `/"`, swarm.ErrUnavailable},
		{"unknown scheme", `Negotiate`, ErrDenied},
		{"garbage", `"""`, ErrDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", tt.challenge)
				w.WriteHeader(http.StatusUnauthorized)
			})
			path := dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"bob","password":"x"}}}`)
			c := newClient(t, Config{DockerConfig: path}, host)
			if _, err := c.Blob(Repository{host, "a"}, d, 1).Open(t.Context(), 0, 1); !errors.Is(err, tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestTokenServiceTrouble(t *testing.T) {
	for _, tt := range []struct {
		name     string
		answer   http.HandlerFunc
		want     error
		requests int64
	}{
		{"denies", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, ErrDenied, 1},
		{"fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, swarm.ErrUnavailable, 4},
		{"limits", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, ErrRateLimited, 4},
		{"redirects", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, ErrInvalid, 1},
		{"says nothing", func(http.ResponseWriter, *http.Request) {}, ErrInvalid, 1},
		{"gives a token that is refused", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"x"}`)) }, ErrDenied, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int64
			realm := serve(t, func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				tt.answer(w, r)
			})
			host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+realm+`/"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			c := newClient(t, Config{}, host, realm)
			if _, err := c.Head(t.Context(), Repository{host, "a"}, "x"); !errors.Is(err, tt.want) || n.Load() != tt.requests {
				t.Errorf("%d token requests, error %v", n.Load(), err)
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	p, d := content(100)
	auth := func(r *http.Request) bool { return r.Header.Get("Authorization") != "" }
	t.Run("back to the registry without credentials", func(t *testing.T) {
		var host, other string
		other = serve(t, func(w http.ResponseWriter, r *http.Request) {
			if auth(r) {
				t.Error("credentials travel")
			}
			http.Redirect(w, r, "http://"+host+"/back", http.StatusFound)
		})
		host = serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/back":
				if auth(r) {
					t.Error("credentials come back")
				}
				serveBytes(w, r, p)
			case r.URL.Path == "/here" && auth(r):
				http.Redirect(w, r, "http://"+other+"/x", http.StatusSeeOther)
			case auth(r):
				http.Redirect(w, r, "/here", http.StatusMovedPermanently)
			default:
				w.Header().Set("WWW-Authenticate", "Basic realm=x")
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
		c := newClient(t, Config{DockerConfig: dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"a","password":"b"}}}`)}, host, other)
		if got, err := read(t.Context(), c.Blob(Repository{host, "a"}, d, 100), 5, 10); err != nil || string(got) != string(p[5:15]) {
			t.Error(err)
		}
	})
	t.Run("in circles", func(t *testing.T) {
		var n atomic.Int64
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		})
		_, err := newClient(t, Config{}, host).Head(t.Context(), Repository{host, "a"}, "x")
		if !errors.Is(err, ErrInvalid) || n.Load() != maxRedirects+1 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
	})
	t.Run("401 elsewhere is not answered", func(t *testing.T) {
		other := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if auth(r) {
				t.Error("credentials travel")
			}
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
		})
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+other+"/x", http.StatusFound)
		})
		c := newClient(t, Config{DockerConfig: dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"a","password":"b"}}}`)}, host, other)
		if _, err := c.Head(t.Context(), Repository{host, "a"}, "x"); !errors.Is(err, ErrDenied) {
			t.Error(err)
		}
	})
}

// TestTLS speaks to a registry with its own authority, whose redirects lead to
// loopback.
func TestTLS(t *testing.T) {
	p, d := content(100)
	silent := func(h http.HandlerFunc) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
		s.StartTLS()
		return s
	}
	local := silent(func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p) })
	defer local.Close()
	localHost := local.Listener.Addr().String()
	plain := serve(t, func(_ http.ResponseWriter, _ *http.Request) { t.Error("https led to http") })
	reg := silent(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("protocol %s", r.Proto)
		}
		to := "https://" + localHost + "/x"
		if strings.Contains(r.URL.Path, "/plain/") {
			to = "http://" + plain + "/x"
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	})
	defer reg.Close()
	host := reg.Listener.Addr().String()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca, reg.Certificate().Raw)
	pool, err := basePool(nil)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(reg.Certificate())

	for _, tt := range []struct {
		name string
		cfg  Config
		repo string
		want string // in the error; empty: none
	}{
		{"authority unknown", Config{Local: []string{host, localHost}}, "a", "certificate"},
		{"registry is local, storage not", Config{CAs: map[string]string{host: ca}, RootCAs: pool}, "a", errAddress.Error()},
		{"both local", Config{CAs: map[string]string{host: ca}, RootCAs: pool, Local: []string{localHost}}, "a", ""},
		{"authorities hold for their host only", Config{CAs: map[string]string{host: ca}, Local: []string{localHost}}, "a", "certificate"},
		{"registry not named", Config{RootCAs: pool}, "a", errAddress.Error()},
		{"https to http", Config{CAs: map[string]string{host: ca}, Insecure: []string{plain}}, "plain/a", "https to http"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(t, tt.cfg)
			_, err := read(t.Context(), c.Blob(Repository{host, tt.repo}, d, 100), 0, 100)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, swarm.ErrUnavailable)) {
				t.Errorf("error %v", err)
			}
		})
	}
	if _, err := New(Config{CAs: map[string]string{host: "/nonexistent"}}); err == nil {
		t.Error("missing CA file accepted")
	}
	if _, err := New(Config{CAs: map[string]string{host: dockerConfigFile(t, "no pem")}}); err == nil {
		t.Error("CA file without certificate accepted")
	}
}

// TestProxy reaches registries through a proxy that is local, which is no
// reason to refuse it.
func TestProxy(t *testing.T) {
	var asked atomic.Value
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		w.WriteHeader(http.StatusForbidden)
	})
	c := newClient(t, Config{Retry: Retry{Attempts: 1}, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})})
	_, err := c.Head(t.Context(), Repository{"r.test", "a"}, "x")
	if !errors.Is(err, swarm.ErrUnavailable) || asked.Load() != "CONNECT r.test:443" {
		t.Errorf("proxy asked for %v, error %v", asked.Load(), err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"insecure host with scheme": {Insecure: []string{"http://r.test"}},
		"local host with path":      {Local: []string{"r.test/x"}},
		"docker config missing":     {DockerConfig: "/nonexistent"},
		"docker config malformed":   {DockerConfig: dockerConfigFile(t, `{"auths":{"r.test":{"password":"pa55-word`)},
	} {
		_, err := New(cfg)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		noSecret(t, err.Error(), "pa55-word")
	}
}

// TestAuthWaitEnds gives up waiting for a token that another request fetches.
func TestAuthWaitEnds(t *testing.T) {
	auth := newTokens(newClient(t, Config{}), nil)
	repo := Repository{"r.test", "a"}
	g := auth.grant(repo)
	if err := g.hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer g.release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := auth.known(ctx, repo); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := auth.answer(ctx, repo, nil, ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	auth.forget(repo, "") // does not wait
}
