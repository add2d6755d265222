package chart

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// TestConfigIsOne: the program finds no mistake in what the chart writes for it.
// With credentials that are not there, it stops right after it has looked.
func TestConfigIsOne(t *testing.T) {
	for name, args := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := render(t, args...)
			dir := t.TempDir()
			config := writeConfig(t, all, dir)
			cmd := exec.CommandContext(t.Context(), program(t, "SHOAL"), "serve", "--config", config, "--node", "n")
			if name == "insecure" { // which has no credentials: no data directory stops it
				file := filepath.Join(dir, "file")
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				cmd.Args = append(cmd.Args, "--data-dir", filepath.Join(file, "data"), "--mirror-addr", "127.0.0.1:0",
					"--control-addr", "127.0.0.1:0", "--wire-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--advertise-addr", "127.0.0.1")
			}
			out, err := cmd.CombinedOutput()
			code := cmd.ProcessState.ExitCode()
			want := "certs-dir: read credentials"
			if name == "insecure" {
				want = "data-dir: "
			}
			if code != 1 || !strings.Contains(string(out), want) {
				t.Errorf("%v, want status 1 and %q:\n%s", err, want, out)
			}
		})
	}
}

// TestConfigCanBeWrong: the test above sees mistakes.
func TestConfigCanBeWrong(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	for text, want := range map[string]string{
		"cluster: c\nmiror-addr: :1\n":                                       "unknown setting",
		"cluster: c\ndrain: soon\n":                                          "drain",
		"cluster: c\ncerts-dir: /nonexistent\ndocker-config: /nonexistent\n": "docker-config",
	} {
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program(t, "SHOAL"), "serve", "--config", config, "--node", "n")
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), want) {
			t.Errorf("%q: want status 2 and %q:\n%s", text, want, out)
		}
	}
}

// writeConfig writes the file that a pod of the DaemonSet gets to dir, where
// what it names in /etc/shoal is too, except for the credentials.
func writeConfig(t *testing.T, all []object, dir string) string {
	t.Helper()
	text := ""
	for _, o := range all {
		if m, ok := o.value.(*core.ConfigMap); ok && m.Data["config.yaml"] != "" {
			text = m.Data["config.yaml"]
		}
		if o.kind != "DaemonSet" || strings.HasSuffix(o.GetName(), "-cleanup") {
			continue
		}
		for _, v := range o.pod.Volumes {
			switch v.Name {
			case "docker":
				writeFile(t, filepath.Join(dir, mountPath(o.pod, v.Name), v.Secret.Items[0].Path), "{}")
			case "ca":
				for _, s := range v.Projected.Sources {
					var items []core.KeyToPath
					if s.Secret != nil {
						items = s.Secret.Items
					} else {
						items = s.ConfigMap.Items
					}
					writeFile(t, filepath.Join(dir, mountPath(o.pod, v.Name), items[0].Path), "")
				}
			}
		}
	}
	if text == "" {
		t.Fatal("no config.yaml")
	}
	path := filepath.Join(dir, "config.yaml")
	writeFile(t, path, strings.ReplaceAll(text, "/etc/shoal/", dir+"/etc/shoal/"))
	return path
}

func mountPath(p *core.PodSpec, volume string) string {
	for _, m := range p.Containers[0].VolumeMounts {
		if m.Name == volume {
			return m.MountPath
		}
	}
	return ""
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificates: what Helm has made is what package peertls asks for.
func TestCertificates(t *testing.T) {
	all := render(t, "--set", "tls.days=100")
	ca, leaf := find[*core.Secret](t, all, "shoal-ca"), find[*core.Secret](t, all, "shoal-tls")
	for _, o := range all {
		if o.pod == nil {
			continue
		}
		for _, v := range o.pod.Volumes {
			if v.Secret != nil && v.Secret.SecretName == ca.Name || strings.Contains(fmt.Sprint(v.Projected), ca.Name) {
				t.Errorf("%s mounts the authority's key", o.GetName())
			}
		}
	}
	if _, ok := leaf.Data["ca.key"]; ok {
		t.Error("the nodes' secret has the authority's key")
	}
	pair, err := tls.X509KeyPair(leaf.Data["tls.crt"], leaf.Data["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(ca.Data["ca.crt"], ca.Data["ca.key"]); err != nil {
		t.Error(err)
	}
	if _, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Errorf("a key of %T", pair.PrivateKey)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(leaf.Data["ca.crt"]) || !bytes.Equal(leaf.Data["ca.crt"], ca.Data["ca.crt"]) {
		t.Error("no authority, or another one")
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if pair.Leaf.Subject.CommonName != "*" || pair.Leaf.IsCA {
		t.Errorf("certificate of %q, authority %v", pair.Leaf.Subject.CommonName, pair.Leaf.IsCA)
	}
	life := pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore)
	renew, err := time.Parse(time.RFC3339, leaf.Annotations["shoal/renew-after"])
	if half := pair.Leaf.NotBefore.Add(life / 2); err != nil || renew.Sub(half).Abs() > time.Minute || life != 100*24*time.Hour {
		t.Errorf("renewed after %v, valid for %v, %v", renew, life, err)
	}
	block, _ := pem.Decode(ca.Data["ca.crt"])
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil || time.Until(authority.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("authority until %v, %v", authority.NotAfter, err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(leaf.Data["gossip.key"])))
	if err != nil || len(key) != 32 || !bytes.Equal(leaf.Data["gossip.key"], ca.Data["gossip.key"]) {
		t.Errorf("gossip key of %d bytes, %v", len(key), err)
	}
}

// TestNodesMeet: two nodes with the configuration and credentials that Helm has
// made recognise each other.
func TestNodesMeet(t *testing.T) {
	all := render(t)
	first := startNode(t, all, "one", "")
	second := startNode(t, all, "two", first.gossip)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if first.members(t) == "2" && second.members(t) == "2" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("they have not met:\n%s\n%s", first.log, second.log)
		}
	}
}

// shoalNode is a running process.
type shoalNode struct {
	gossip, metrics string
	log             *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startNode(t *testing.T, all []object, name, join string) shoalNode {
	t.Helper()
	dir := t.TempDir()
	config := writeConfig(t, all, dir)
	for key, data := range find[*core.Secret](t, all, "shoal-tls").Data {
		writeFile(t, filepath.Join(dir, "etc/shoal/certs", key), string(data))
	}
	n := shoalNode{freeAddr(t), freeAddr(t), &syncBuffer{}}
	// What differs from the pod: nodes on one machine, no containerd.
	cmd := exec.Command(program(t, "SHOAL"), "serve", "--config", config, "--node", name,
		"--data-dir", filepath.Join(dir, "data"), "--containerd-socket=", "--containerd-root=", "--advertise-addr=127.0.0.1", "--join="+join,
		"--mirror-addr=127.0.0.1:0", "--control-addr=127.0.0.1:0", "--wire-addr=127.0.0.1:0", "--gossip-addr="+n.gossip, "--metrics-addr="+n.metrics)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, n.log)
		}
	})
	return n
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// members is how many live nodes a node knows, as its metrics have it.
func (n shoalNode) members(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.metrics+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "shoal_members "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
