package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

// TestScripts runs the real main against the scripts in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			m := newMirror()
			srv := httptest.NewServer(m)
			e.Defer(srv.Close)
			e.Setenv("MIRROR", srv.URL)
			e.Setenv("DIGEST", m.manifest.String())
			e.Setenv("LAYER", m.layer.String())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Setenv("DEAF", "http://"+l.Addr().String())
			e.Setenv("TAKEN", l.Addr().String())
			e.Defer(func() { _ = l.Close() })
			closed, free, err := refusing()
			if err != nil {
				return err
			}
			e.Defer(free)
			e.Setenv("CLOSED", "http://"+closed)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "waitfor": waitFor},
	})
}

// refusing is an address that refuses connections until it is freed: its port is
// taken, so that no test beside this one can come to listen there, by a socket that
// does not listen.
func refusing() (addr string, free func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	free = func() { _ = unix.Close(fd) }
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		free()
		return "", nil, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		free()
		return "", nil, err
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port), free, nil
}

// exits runs a command and compares its exit status: exits STATUS COMMAND...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// waitFor waits until a file is like another one: waitfor FILE OTHER
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	want := ts.ReadFile(args[1])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if got, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && string(got) == want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not become like %s", args[0], args[1])
		}
	}
}

// testMirror serves one image, as registry.test/app:latest and, with a layer whose
// bytes are wrong, as registry.test/bad:latest.
type testMirror struct {
	manifest, layer digest.Digest
	content         map[string][]byte // by path
}

func newMirror() *testMirror {
	m := &testMirror{content: map[string][]byte{}}
	blob := func(repo string, p []byte) v1.Descriptor {
		d := digest.FromBytes(p)
		m.content["/v2/"+repo+"/blobs/"+d.String()] = p
		return v1.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(p))}
	}
	for _, repo := range []string{"app", "bad"} {
		layer := blob(repo, bytes.Repeat([]byte("shoal"), 1<<16))
		man := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: blob(repo, []byte("{}")), Layers: []v1.Descriptor{layer}}
		p, _ := json.Marshal(man)
		d := digest.FromBytes(p)
		m.content["/v2/"+repo+"/manifests/latest"] = p
		m.content["/v2/"+repo+"/manifests/"+d.String()] = p
		m.manifest, m.layer = d, layer.Digest
	}
	wrong := m.content["/v2/bad/blobs/"+m.layer.String()]
	m.content["/v2/bad/blobs/"+m.layer.String()] = append([]byte{'S'}, wrong[1:]...)
	return m
}

func (m *testMirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := m.content[r.URL.Path]
	if !ok || r.URL.Query().Get("ns") != "registry.test" {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[{"code":"NAME_UNKNOWN","message":"not here","detail":{"reason":"unconfigured"}}]}`))
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(p).String())
	}
	_, _ = w.Write(p)
}

// parseServe parses arguments of shoal serve.
func parseServe(t *testing.T, args ...string) (serveCmd, error) {
	t.Helper()
	var c cli
	p, err := newParser(&c, std{&bytes.Buffer{}, &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Parse(append([]string{"serve"}, args...))
	return c.Serve, err
}

func TestServeDefaults(t *testing.T) {
	c, err := parseServe(t)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(c.CacheSize), int64(20<<30); got != want {
		t.Errorf("cache-size %d, want %d", got, want)
	}
	if want := strings.Split(publicRegistries, ","); !cmp.Equal(c.Registry, want) {
		t.Error(cmp.Diff(want, c.Registry))
	}
	if c.MirrorAddr != "127.0.0.1:6500" {
		t.Errorf("mirror-addr %q is not loopback", c.MirrorAddr)
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1024": 1024, "1KiB": 1024, "1 KiB": 1024, "1.5MiB": 3 << 19, "2Gi": 2 << 30,
		"1kB": 1000, "3GB": 3e9, "1TiB": 1 << 40, "7B": 7,
		"": -1, "x": -1, "-1": -1, "1XB": -1, "NaN": -1, "1e30": -1, "GiB": -1, "Inf": -1,
	} {
		var s byteSize
		err := s.UnmarshalText([]byte(in))
		if (err != nil) != (want < 0) {
			t.Errorf("%q: error %v", in, err)
		} else if err == nil && int64(s) != want {
			t.Errorf("%q: %d, want %d", in, s, want)
		}
	}
}

func TestHumanBytes(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 512 << 20: "512.0 MiB", 3 << 39: "1.5 TiB",
	} {
		if got := humanBytes(in); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
}

// TestRunRecoversOnlyExits: help ends the run with a status, a real panic goes
// on.
func TestRunHelp(t *testing.T) {
	var out, errs bytes.Buffer
	if got := run(context.Background(), nil, std{&out, &errs}); got != exitOK {
		t.Errorf("status %d", got)
	}
	if !strings.Contains(out.String(), "Usage: shoal") || errs.Len() > 0 {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}
