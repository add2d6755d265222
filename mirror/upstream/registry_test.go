package upstream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-dev/shoal/swarm"
)

// startRegistry runs the real registry of the distribution project in this
// process.
func startRegistry(t *testing.T, auth configuration.Auth) (host string) {
	t.Helper()
	cfg := &configuration.Configuration{
		Auth: auth,
		Storage: configuration.Storage{
			"inmemory":    {},
			"maintenance": {"uploadpurging": map[interface{}]interface{}{"enabled": false}},
		},
	}
	cfg.HTTP.Secret = "for uploads"
	cfg.Log.AccessLog.Disabled = true
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s := httptest.NewServer(handlers.NewApp(ctx, cfg))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// pusher puts an image into a registry.
type pusher struct {
	host          string
	authorization string
}

func (p pusher) do(t *testing.T, method, u string, header http.Header, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	if p.authorization != "" {
		req.Header.Set("Authorization", p.authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	drop(resp)
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s", method, u, resp.Status)
	}
	return resp
}

func (p pusher) blob(t *testing.T, name string, content []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(content)
	resp := p.do(t, http.MethodPost, "http://"+p.host+"/v2/"+name+"/blobs/uploads/", nil, nil)
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("digest", d.String())
	u.RawQuery = q.Encode()
	p.do(t, http.MethodPut, u.String(), http.Header{"Content-Type": {"application/octet-stream"}}, content)
	return d
}

// image pushes an image of one layer and returns the manifest.
func (p pusher) image(t *testing.T, name, tag string, layer []byte) []byte {
	t.Helper()
	config := []byte("{}")
	m := v1.Manifest{
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: p.blob(t, name, config), Size: int64(len(config))},
		Layers:    []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: p.blob(t, name, layer), Size: int64(len(layer))}},
	}
	m.SchemaVersion = 2
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	p.do(t, http.MethodPut, "http://"+p.host+"/v2/"+name+"/manifests/"+tag, http.Header{"Content-Type": {m.MediaType}}, manifest)
	return manifest
}

// pullAll is what a node does with an image, and what must go wrong.
func pullAll(t *testing.T, c *Client, host string, manifest, layer []byte) {
	t.Helper()
	ctx := t.Context()
	repo := Repository{host, "team/app"}
	want := swarm.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	for _, ref := range []string{"v1", want.Digest.String()} {
		got, err := c.Head(ctx, repo, ref)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("head %s: %v %s", ref, err, diff)
		}
		got, p, err := c.Manifest(ctx, repo, ref)
		if diff := cmp.Diff(want, got); err != nil || diff != "" || !bytes.Equal(p, manifest) {
			t.Errorf("get %s: %v %s", ref, err, diff)
		}
	}
	size := int64(len(layer))
	b := c.Blob(repo, digest.FromBytes(layer), size)
	if got, err := b.Size(ctx); err != nil || got != size {
		t.Errorf("size %d, %v", got, err)
	}
	for _, r := range [][2]int64{{0, size}, {0, 1}, {size / 3, size / 2}, {size - 1, 1}} {
		got, err := read(ctx, b, r[0], r[1])
		if err != nil || !bytes.Equal(got, layer[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %d bytes, %v", r, len(got), err)
		}
	}
	if _, err := c.Head(ctx, repo, "nonesuch"); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("unknown tag: %v", err)
	}
	var e *Error
	if _, _, err := c.Manifest(ctx, repo, "nonesuch"); !errors.As(err, &e) || e.Code != "manifest_unknown" {
		t.Errorf("unknown tag: %v", err)
	}
	if _, err := c.Blob(repo, digest.FromString("nonesuch"), 1).Open(ctx, 0, 1); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("unknown blob: %v", err)
	}
	if _, err := c.Blob(repo, digest.FromBytes(layer), size+1).Open(ctx, 1, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("wrong size: %v", err)
	}
}

func TestRegistryAnonymous(t *testing.T) {
	host := startRegistry(t, nil)
	layer, _ := content(3 << 20)
	manifest := pusher{host: host}.image(t, "team/app", "v1", layer)
	pullAll(t, newClient(t, Config{}, host), host, manifest, layer)
}

func TestRegistryBasic(t *testing.T) {
	// bcrypt of "s3cr3t-basic" at its least cost.
	const entry = "bob:$2a$04$kySBVwJ6I5b5ISJkHV2VOOw6.wu64YEESWCwzbxkH4owKJ5MYYwEC\n"
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	host := startRegistry(t, configuration.Auth{"htpasswd": {"realm": "r", "path": file}})
	cred := credential{username: "bob", password: "s3cr3t-basic"}
	layer, _ := content(100_000)
	manifest := pusher{host: host, authorization: cred.basic()}.image(t, "team/app", "v1", layer)

	path := dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"bob","password":"s3cr3t-basic"}}}`)
	pullAll(t, newClient(t, Config{DockerConfig: path}, host), host, manifest, layer)
	wrong := dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"bob","password":"wr0ng-basic"}}}`)
	for _, cfg := range []Config{{}, {DockerConfig: wrong}} {
		_, err := newClient(t, cfg, host).Head(t.Context(), Repository{host, "team/app"}, "v1")
		if !errors.Is(err, ErrDenied) {
			t.Errorf("error %v", err)
		}
		noSecret(t, err.Error(), "wr0ng-basic")
	}
}

func TestRegistryToken(t *testing.T) {
	signer := newSigner(t)
	realm := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		scope := strings.Split(r.URL.Query().Get("scope"), ":")
		if len(scope) != 3 || r.URL.Query().Get("service") != "test registry" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		var actions []string
		if user == "bob" && password == "s3cr3t-token" {
			actions = []string{"pull"}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": signer.token(t, scope[1], actions), "expires_in": 60})
	})
	host := startRegistry(t, configuration.Auth{"token": {
		"realm": "http://" + realm + "/token", "issuer": "test issuer", "service": "test registry", "rootcertbundle": signer.file,
	}})
	layer, _ := content(100_000)
	push := signer.token(t, "team/app", []string{"pull", "push"})
	manifest := pusher{host: host, authorization: "Bearer " + push}.image(t, "team/app", "v1", layer)

	path := dockerConfigFile(t, `{"auths":{"`+host+`":{"username":"bob","password":"s3cr3t-token"}}}`)
	pullAll(t, newClient(t, Config{DockerConfig: path}, host, realm), host, manifest, layer)
	ready := dockerConfigFile(t, `{"auths":{"`+host+`":{"registrytoken":"`+push+`"}}}`)
	pullAll(t, newClient(t, Config{DockerConfig: ready}, host, realm), host, manifest, layer)
	_, err := newClient(t, Config{}, host, realm).Head(t.Context(), Repository{host, "team/app"}, "v1")
	if !errors.Is(err, ErrDenied) {
		t.Errorf("anonymous: %v", err)
	}
}

// signer issues tokens as the token specification of the distribution project
// says: a JWT, ES256, with the certificate within.
type signer struct {
	key  *ecdsa.PrivateKey
	cert []byte
	file string // certificate in PEM form
}

func newSigner(t *testing.T) *signer {
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
	s := &signer{key: key, cert: cert, file: filepath.Join(t.TempDir(), "signer.pem")}
	writePEM(t, s.file, cert)
	return s
}

func (s *signer) token(t *testing.T, repo string, actions []string) string {
	t.Helper()
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
			"iss": "test issuer", "aud": "test registry", "exp": now.Add(time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
			"access": []map[string]any{{"type": "repository", "name": repo, "actions": actions}},
		})
	sum := sha256.Sum256([]byte(text))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Error(err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return fmt.Sprintf("%s.%s", text, base64.RawURLEncoding.EncodeToString(sig[:]))
}
