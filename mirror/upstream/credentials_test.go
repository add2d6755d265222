package upstream

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writePEM(t *testing.T, path string, der []byte) {
	t.Helper()
	p := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// installHelper puts a script docker-credential-NAME onto the PATH.
func installHelper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestDockerConfigFind(t *testing.T) {
	user := func(s string) credential { return credential{username: s, password: "p"} }
	for _, tt := range []struct {
		name, config string
		repo         Repository
		want         credential
		wantErr      bool
	}{
		{name: "empty", config: `{}`, repo: Repository{"r.test", "a"}},
		{name: "host", config: `{"auths":{"r.test":{"auth":"dTpw"}}}`, repo: Repository{"r.test", "a"}, want: user("u")},
		{name: "colons in the password", config: `{"auths":{"r.test":{"auth":"dTpwOnE="}}}`, repo: Repository{"r.test", "a"}, want: credential{username: "u", password: "p:q"}},
		{name: "port differs", config: `{"auths":{"r.test":{"auth":"dTpw"}}}`, repo: Repository{"r.test:5000", "a"}},
		{name: "prefix of a host", config: `{"auths":{"r.test":{"auth":"dTpw"}}}`, repo: Repository{"r.test.evil.test", "a"}},
		{name: "URL with version", config: `{"auths":{"https://r.test/v2/":{"username":"u","password":"p"}}}`, repo: Repository{"r.test", "a"}, want: user("u")},
		{name: "docker hub", config: `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`, repo: Repository{"docker.io", "library/a"}, want: user("u")},
		{name: "docker hub, short", config: `{"auths":{"docker.io":{"auth":"dTpw"}}}`, repo: Repository{"docker.io", "library/a"}, want: user("u")},
		{name: "docker hub is not for others", config: `{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`, repo: Repository{"quay.io", "a"}},
		{name: "longest path", config: `{"auths":{"r.test":{"username":"u","password":"p"},"r.test/a":{"username":"v","password":"p"},"r.test/a/b/c":{"username":"w","password":"p"}}}`,
			repo: Repository{"r.test", "a/b"}, want: user("v")},
		{name: "path is whole components", config: `{"auths":{"r.test/a":{"auth":"dTpw"}}}`, repo: Repository{"r.test", "ab"}},
		{name: "tokens", config: `{"auths":{"r.test":{"identitytoken":"i","registrytoken":"r"}}}`, repo: Repository{"r.test", "a"}, want: credential{identityToken: "i", registryToken: "r"}},
		{name: "no base64", config: `{"auths":{"r.test":{"auth":"%"}}}`, repo: Repository{"r.test", "a"}, wantErr: true},
		{name: "no colon", config: `{"auths":{"r.test":{"auth":"dQ=="}}}`, repo: Repository{"r.test", "a"}, wantErr: true},
		{name: "token that would break a header", config: `{"auths":{"r.test":{"registrytoken":"a\nb"}}}`, repo: Repository{"r.test", "a"}, wantErr: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseDockerConfig([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.find(tt.repo)
			if (err != nil) != tt.wantErr {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(credential{})); err == nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzDockerConfig(f *testing.F) {
	for _, s := range []string{
		`{"auths":{"r.test":{"auth":"dTpw"}}}`, `{"auths":{"https://r.test/v1/x":{"username":"a"}}}`, `{"credHelpers":{"r.test":"x"}}`,
		`{"credsStore":"a/b"}`, `{"auths":null}`, `[]`, `{"auths":{"r.test/a//":{"registrytoken":"\u0000"}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := parseDockerConfig(p)
		if err != nil {
			return
		}
		c.helper("r.test")
		cred, err := c.find(Repository{"r.test", "a/b"})
		if err == nil && cred.usable() != nil {
			t.Fatalf("%q: unusable credential", p)
		}
	})
}

func TestHelperChoice(t *testing.T) {
	c, err := parseDockerConfig([]byte(`{"credsStore":"all","credHelpers":{"r.test":"one","docker.io":"hub"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string][2]string{
		"r.test":    {"one", "r.test"},
		"R.test":    {"one", "r.test"},
		"q.test:80": {"all", "q.test:80"},
		"docker.io": {"hub", hubKey},
	} {
		name, server := c.helper(registry)
		if name != want[0] || server != want[1] {
			t.Errorf("%s: %s %s", registry, name, server)
		}
	}
}

func TestHelper(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         credential
		wantErr      string
	}{
		{"password", `read server; echo "{\"ServerURL\":\"$server\",\"Username\":\"$1-$server\",\"Secret\":\"s\"}"`, credential{username: "get-r.test", password: "s"}, ""},
		{"identity token", `echo '{"Username":"<token>","Secret":"s"}'`, credential{identityToken: "s"}, ""},
		{"none", `echo "credentials not found in native keychain"; exit 1`, credential{}, ""},
		{"fails", `echo s3cr3t; echo s3cr3t >&2; exit 3`, credential{}, "exit status 3"},
		{"nonsense", `echo s3cr3t`, credential{}, "unusable answer"},
		{"too much", `while echo s3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3ts3cr3t; do :; done`, credential{}, "run docker-credential-test"},
		{"unusable token", `echo '{"Username":"<token>","Secret":"s3cr3t x"}'`, credential{}, "no token has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			installHelper(t, "test", tt.script)
			got, err := askHelper(t.Context(), "test", "r.test")
			if tt.wantErr == "" && err != nil || tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				noSecret(t, err.Error(), "s3cr3t")
				return
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(credential{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, name := range []string{"../x", "", "a b", "-x", "a/b"} {
		if _, err := askHelper(t.Context(), name, "r.test"); err == nil || !strings.Contains(err.Error(), "invalid name") {
			t.Errorf("helper %q: %v", name, err)
		}
	}
}

func TestHelperThatHangs(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "started")
	installHelper(t, "hang", "mkfifo "+marker+"; exec cat "+marker)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if _, err := os.Stat(marker); err == nil || ctx.Err() != nil {
				cancel()
				return
			}
		}
	}()
	if _, err := askHelper(ctx, "hang", "r.test"); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	cancel()
}

// TestHelperThenFile: a helper that knows nothing leaves it to the file.
func TestHelperThenFile(t *testing.T) {
	installHelper(t, "none", `echo "credentials not found in native keychain"; exit 1`)
	path := dockerConfigFile(t, `{"credsStore":"none","auths":{"r.test":{"auth":"dTpw"}}}`)
	got, err := dockerCredentials{path: path}.lookup(t.Context(), Repository{"r.test", "a"})
	if err != nil || got.username != "u" {
		t.Errorf("user %q, %v", got.username, err)
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := credential{username: "bob", password: "pa55", identityToken: "1dt", registryToken: "r3g"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		noSecret(t, fmt.Sprintf(verb, c), "pa55", "1dt", "r3g")
		noSecret(t, fmt.Sprintf(verb, &c), "pa55", "1dt", "r3g")
	}
}
