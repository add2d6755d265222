package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shoal.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigFile(t *testing.T) {
	path := writeConfig(t, `
cluster: file
node: file
zone: file
join: [a:1, b:2]
registry:
  - docker.io
  - "*.example.com"
registry-ca:
  one.test: /one.pem
  two.test:5000: /two.pem
cache-size: 1073741824
disk-reserve: 10MiB
insecure-peers: true
tag-ttl: 1m
containerd-socket: ""
`)
	t.Setenv("SHOAL_NODE", "env")
	t.Setenv("SHOAL_ZONE", "env")
	t.Setenv("SHOAL_CONFIG", path)
	c, err := parseServe(t, "--zone", "flag")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.config()
	if err != nil {
		t.Fatal(err)
	}
	type values struct {
		Cluster, Node, Zone, Socket string
		Join, Registries            []string
		CAs                         map[string]string
		Cache, Reserve              int64
		Insecure                    bool
		TTL                         string
	}
	want := values{
		"file", "env", "flag", "", []string{"a:1", "b:2"}, []string{"docker.io", "*.example.com"},
		map[string]string{"one.test": "/one.pem", "two.test:5000": "/two.pem"}, 1 << 30, 10 << 20, true, "1m0s",
	}
	if diff := cmp.Diff(want, values{
		got.Cluster, got.Name, got.Zone, got.ContainerdSocket, got.Join, got.Registries, got.RegistryCAs,
		got.CacheSize, got.DiskReserve, got.InsecurePeers, got.TagTTL.String(),
	}); diff != "" {
		t.Error(diff)
	}
}

func TestConfigFileMistakes(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unknown setting":    {"clutter: x", `unknown setting "clutter"`},
		"almost known":       {"cache_size: 1GiB", "did you mean cache-size?"},
		"config in itself":   {"config: x", `unknown setting "config"`},
		"no YAML":            {"cluster: [", "read configuration"},
		"not a mapping":      {"- a", "read configuration"},
		"nested value":       {"join: [[a]]", "join: want a plain value"},
		"wrong kind":         {"tag-ttl: soon", "--tag-ttl"},
		"no size":            {"cache-size: big", "is no size"},
		"outside the enum":   {"log-level: loud", "--log-level"},
		"same setting again": {"zone: a\nzone: b", "already defined"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseServe(t, "--config", writeConfig(t, tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := parseServe(t, "--config", "/nonexistent"); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := parseServe(t, "--config", writeConfig(t, "")); err != nil {
		t.Errorf("empty file: %v", err)
	}
}
