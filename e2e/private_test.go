//go:build e2e

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

const (
	podUser     = "pod"
	podPassword = "s3cr3t-of-a-p0d"
	// podEntry is the line of htpasswd for it, of the least cost.
	podEntry = "pod:$2a$04$cQC0LdwGh/S53iLaAP2PlOAKzVTJKGnIzkrhs1Mda7MLBgPkYPfYa\n"
	// tokenPort is the token service's, on the registry's machine.
	tokenPort = "5002"
)

// TestPrivate: an image that only a pod's own pull secret opens comes through
// the swarm, one copy leaves the registry, and on the nodes that hold it nobody
// gets anything without the secret.
func TestPrivate(t *testing.T) {
	nerdctl, err := lab.BuildNerdctl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []string{"Bearer", "Basic"} {
		t.Run(scheme, func(t *testing.T) {
			const rate = 100 * lab.Mbit
			l, service := newPrivateLab(t, scheme, "e2e/private", lab.Config{
				Nodes: 4, Rate: rate, RegistryRate: rate, Containerd: allVersions,
			})
			img := push(t, l, "private", 100e6, 3)

			m := startMeter(t, l)
			var g errgroup.Group
			for _, n := range l.Nodes() {
				g.Go(func() error {
					took, err := n.PullAs(t.Context(), img.Ref, podUser, podPassword)
					t.Logf("%s pulled in %v", n.Name, took.Round(time.Millisecond))
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			copies := m.copies(t, img)
			t.Logf("%.3f copies left the registry", copies)
			if copies > 1.1 {
				t.Errorf("%.3f copies left the registry, want at most 1.1", copies)
			}
			for _, n := range l.Nodes() {
				if got := metric(t, n, `shoal_mirror_bytes_total`); int64(got) < img.Size()-img.Manifest.Size {
					t.Errorf("%s has %.0f bytes from its mirror, want all of the image", n.Name, got)
				}
				if metric(t, n, `shoal_mirror_fallbacks_total{reason="challenge"}`) == 0 {
					t.Errorf("%s: no challenge was passed on: the registry guards nothing", n.Name)
				}
			}
			n := l.Node(0)
			refusedByMirror(t, n, img, scheme)
			for _, password := range []string{"", "wr0ng"} {
				user := podUser
				if password == "" {
					user = ""
				}
				if took, err := n.PullAs(t.Context(), img.Ref, user, password); err == nil {
					t.Errorf("pulled with the password %q in %v on a node that has the image", password, took)
				}
			}
			// The mirror's refusals harm nobody who has the right.
			if err := n.Remove(t.Context(), img.Ref); err != nil {
				t.Fatal(err)
			}
			m = startMeter(t, l)
			if _, err := n.PullAs(t.Context(), img.ByDigest(), podUser, podPassword); err != nil {
				t.Fatal(err)
			}
			if copies := m.copies(t, img); copies > 0.05 {
				t.Errorf("%.3f copies left the registry although three nodes have the image", copies)
			}
			testKeychain(t, l, nerdctl, img)
			tellsNoSecret(t, l, append(service.all(), podPassword, basic(podUser, podPassword)))
		})
	}
}

// newPrivateLab makes a lab whose registry asks for the pods' credentials, by a token
// service (Bearer) or itself (Basic), and lets the lab push to one repository.
func newPrivateLab(t *testing.T, scheme, repository string, config lab.Config) (*lab.Lab, *tokenService) {
	t.Helper()
	config.ShoalArgs = []string{"--insecure-registry", "registry.lab:" + tokenPort}
	service := newTokenService(t)
	if scheme == "Basic" {
		config.RegistryAuth = basicConfig(t)
		l := newLab(t, config)
		l.Registry.Authorization = "Basic " + basic(podUser, podPassword)
		return l, service
	}
	config.RegistryAuth = service.registryConfig()
	l := newLab(t, config)
	service.serve(t, l.Registry)
	l.Registry.Authorization = "Bearer " + service.token(t, repository, "pull", "push")
	return l, service
}

// testKeychain pulls with nerdctl, whose own keychain goes by the host that is asked:
// with credentials for the registry alone, what the mirror refuses comes from there;
// with credentials for the mirror's address too, it comes through the mirror.
func testKeychain(t *testing.T, l *lab.Lab, nerdctl string, img lab.Image) {
	t.Helper()
	n := l.Node(1)
	mirror := strings.TrimPrefix(n.Mirror(), "http://")
	for _, c := range []struct {
		name         string
		hosts        []string
		lands, comes bool // and so through the mirror
	}{
		{"none", nil, false, false},
		{"the registry", []string{lab.RegistryHost}, true, false},
		{"the mirror", []string{mirror}, true, true},
		{"both", []string{lab.RegistryHost, mirror}, true, true},
	} {
		if err := n.Remove(t.Context(), img.Ref); err != nil {
			t.Fatal(err)
		}
		before := metric(t, n, "shoal_mirror_bytes_total")
		m := startMeter(t, l)
		_, err := n.Output(t.Context(), "env", "DOCKER_CONFIG="+dockerConfig(t, c.hosts...), nerdctl,
			"--address", n.ContainerdSocket(), "--namespace", "k8s.io", "--data-root", filepath.Join(n.Dir, "nerdctl"),
			"--hosts-dir", n.HostsDir(), "pull", "--quiet", img.Ref)
		copies, through := m.copies(t, img), int64(metric(t, n, "shoal_mirror_bytes_total")-before)
		t.Logf("nerdctl with credentials for %s: %v; %d bytes through the mirror, %.3f copies left the registry", c.name, err, through, copies)
		if (err == nil) != c.lands {
			t.Errorf("nerdctl with credentials for %s: %v", c.name, err)
		} else if c.lands {
			// CRI hears of what others pull, and is to remove it.
			eventually(t, "CRI to know of the image", func() bool {
				has, err := n.Has(t.Context(), img.Ref)
				return err == nil && has
			})
		}
		if comes := through >= img.Size()-img.Manifest.Size; comes != c.comes || c.comes && copies > 0.05 {
			t.Errorf("nerdctl with credentials for %s: %d bytes through the mirror, %.3f copies left the registry", c.name, through, copies)
		}
	}
}

// dockerConfig is a directory with a config.json that has the pod's credentials for
// some hosts.
func dockerConfig(t *testing.T, hosts ...string) string {
	t.Helper()
	auths := map[string]any{}
	for _, h := range hosts {
		auths[h] = map[string]string{"auth": basic(podUser, podPassword)}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// refusedByMirror asks the mirror as containerd does, without the right.
func refusedByMirror(t *testing.T, n *lab.Node, img lab.Image, scheme string) {
	t.Helper()
	client := n.Client()
	defer client.CloseIdleConnections()
	base := n.Mirror() + "/v2/" + img.Repository
	for _, path := range []string{
		"/manifests/v1", "/manifests/" + img.Manifest.Digest.String(),
		"/blobs/" + img.Layers[0].Digest.String(), "/blobs/" + img.Config.Digest.String(),
	} {
		for _, authorization := range []string{"", "Bearer made-up", "Basic " + basic(podUser, "wr0ng")} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path+"?ns="+lab.RegistryHost, nil)
			if err != nil {
				t.Fatal(err)
			}
			if authorization != "" {
				req.Header.Set("Authorization", authorization)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			resp.Body.Close()
			if challenge := resp.Header.Get("WWW-Authenticate"); err != nil || resp.StatusCode != http.StatusUnauthorized || !strings.HasPrefix(challenge, scheme+" ") || len(body) > 1000 {
				t.Errorf("%s with %q: %s, %q, %.200q", path, authorization, resp.Status, challenge, body)
			}
		}
	}
}

// tellsNoSecret looks for secrets in all that the nodes' Shoal has written or
// says of itself.
func tellsNoSecret(t *testing.T, l *lab.Lab, secrets []string) {
	t.Helper()
	look := func(where string, text []byte) {
		for _, s := range secrets {
			if bytes.Contains(text, []byte(s)) {
				t.Errorf("%s tells the secret %.20s...", where, s)
			}
		}
	}
	for _, n := range l.Nodes() {
		client := n.Client()
		resp, err := client.Get("http://127.0.0.1:" + lab.MetricsPort + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		client.CloseIdleConnections()
		if err != nil {
			t.Fatal(err)
		}
		look(n.Name+"'s metrics", text)
		log, err := os.ReadFile(n.Shoal().LogPath)
		if err != nil || len(log) == 0 {
			t.Errorf("log of %s: %d bytes, %v", n.Name, len(log), err)
		}
		look(n.Name+"'s log", log)
		err = filepath.WalkDir(filepath.Join(n.Dir, "shoal"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // dropped meanwhile
			}
			look(path, text)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// basicConfig makes the registry ask for the pod's password.
func basicConfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte(podEntry), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("auth:\n  htpasswd:\n    realm: lab\n    path: %s\n", file)
}

// tokenService gives out tokens as the token specification of the distribution
// project says: JWTs, ES256, with the certificate within. It gives anonymous
// clients tokens without rights, as Docker Hub does.
type tokenService struct {
	key  *ecdsa.PrivateKey
	cert []byte
	file string // the certificate, for the registry

	mu     sync.Mutex
	issued []string
}

func newTokenService(t *testing.T) *tokenService {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenService{key: key, cert: cert, file: filepath.Join(t.TempDir(), "token.crt")}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(s.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *tokenService) registryConfig() string {
	return fmt.Sprintf(`auth:
  token:
    realm: http://registry.lab:%s/token
    service: lab registry
    issuer: lab issuer
    rootcertbundle: %s
`, tokenPort, s.file)
}

// serve answers on the registry's machine until the test ends.
func (s *tokenService) serve(t *testing.T, on *lab.Registry) {
	t.Helper()
	serve(t, on.Machine, tokenPort, func(w http.ResponseWriter, r *http.Request) {
		user, password, with := r.BasicAuth()
		scope := strings.Split(r.URL.Query().Get("scope"), ":")
		right := user == podUser && password == podPassword
		switch {
		case len(scope) != 3 || r.URL.Query().Get("service") != "lab registry":
			w.WriteHeader(http.StatusBadRequest)
			return
		case with && !right:
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var actions []string
		if right {
			actions = []string{"pull"}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": s.token(t, scope[1], actions...), "expires_in": 300})
	})
}

// token makes one for some actions on a repository.
func (s *tokenService) token(t *testing.T, repository string, actions ...string) string {
	part := func(v any) string {
		p, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		return base64.RawURLEncoding.EncodeToString(p)
	}
	now := time.Now()
	text := part(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		part(map[string]any{
			"iss": "lab issuer", "aud": "lab registry",
			"exp": now.Add(5 * time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
			"access": []map[string]any{{"type": "repository", "name": repository, "actions": actions}},
		})
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Error(err)
	}
	var signature [64]byte
	r.FillBytes(signature[:32])
	v.FillBytes(signature[32:])
	token := text + "." + base64.RawURLEncoding.EncodeToString(signature[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued = append(s.issued, token)
	return token
}

// all tokens that were given out.
func (s *tokenService) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.issued...)
}
