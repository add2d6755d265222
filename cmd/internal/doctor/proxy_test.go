package doctor

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/mirror/upstream"
)

func TestProxy(t *testing.T) {
	const unit = "/etc/systemd/system/containerd.service.d/proxy.conf"
	// A proxy that leads to every registry but one.
	works := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.URL.IsAbs() {
			t.Errorf("a proxy is asked for %s", r.URL)
		}
		if r.URL.Host == "cut.test" {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(works.Close)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	process := func(env string) map[string]string {
		return map[string]string{"/proc/12/comm": "bash\n", "/proc/34/comm": "containerd\n", "/proc/34/environ": env, "/proc/34/cmdline": "containerd\x00--config\x00/other.toml\x00"}
	}
	own := func(u *url.URL) (*url.URL, error) {
		if u.Host == "b.test" {
			return url.Parse(works.URL)
		}
		return nil, nil
	}
	proxy := "HTTP_PROXY=" + works.URL
	for _, c := range []struct {
		name  string
		files map[string]string
		own   func(*url.URL) (*url.URL, error)
		want  []string
		shows string
	}{
		{"none", process("PATH=/bin\x00HOME=/root"), nil, nil, ""},
		{"of the process", process("PATH=/bin\x00" + proxy), nil, []string{"proxy-unknown"}, "a.test, b.test"},
		{"is told of", process(proxy + "\x00NO_PROXY=10.0.0.0/8"), nil, []string{"proxy-unknown"}, proxy + "\nNO_PROXY=10.0.0.0/8"},
		{"but for one", process(strings.ToLower("HTTP_PROXY") + "=" + works.URL + "\x00no_proxy=a.test,10.0.0.0/8"), nil, []string{"proxy-unknown"}, "proxy for b.test"},
		{"for nothing", process(proxy + "\x00NO_PROXY=*"), nil, nil, ""},
		{"of both", process(proxy + "\x00NO_PROXY=a.test"), own, nil, ""},
		{"of Shoal's alone", process("PATH=/bin"), own, []string{"proxy-own"}, "b.test"},
		{"without secrets", process("HTTP_PROXY=http://ann:geheim@" + works.Listener.Addr().String()), nil, []string{"proxy-unknown"}, "http://ann:xxxxx@127.0.0.1"},
		{"that is not there", process("HTTP_PROXY=" + closed.URL + "\x00NO_PROXY=a.test"), own, []string{"proxy-fails"}, `Environment="NO_PROXY=a.test,b.test"`},
		{"of a service", map[string]string{unit: "[Service]\nEnvironment=\"" + proxy + "\" 'NO_PROXY=localhost,a.test'\n"},
			nil, []string{"proxy-unknown"}, "proxy for b.test"},
		{"of a unit over two lines", map[string]string{"/usr/lib/systemd/system/containerd.service": "[Service]\nEnvironment=A=b \\\n  " + proxy + "\n"},
			nil, []string{"proxy-unknown"}, "containerd.service has a proxy"},
		{"of a file of a service", map[string]string{
			"/etc/systemd/system/k3s.service":     "[Service]\nEnvironmentFile=-/etc/default/none\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\n",
			"/etc/systemd/system/k3s.service.env": "# ours\nNO_PROXY='a.test'\n" + proxy + "\n",
		}, nil, []string{"proxy-unknown"}, "proxy for b.test"},
		{"the last drop-in counts", map[string]string{unit: "Environment=" + proxy, "/run/systemd/system/containerd.service.d/x.conf": "Environment=HTTP_PROXY=http://other.test"},
			nil, []string{"proxy-unknown"}, proxy},
		{"not to be seen", nil, nil, []string{"not-examined"}, "no process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := node(t, c.files)
			setRegistries(t, e, upstream.Config{Insecure: []string{"a.test", "b.test"}}, "a.test", "b.test", "*.gcr.io")
			if c.own != nil {
				e.Proxy = c.own
			}
			d := findDaemon(e, e.path("/proc"))
			if d.config != "" {
				t.Errorf("%s is taken for containerd's configuration: it may be another containerd", d.config)
			}
			found := checkProxy(t.Context(), e, d)
			if diff := cmp.Diff(append([]string{}, c.want...), ids(found)); diff != "" {
				t.Errorf("%s%+v", diff, found)
			}
			if c.shows != "" && !evidence(found, c.shows) {
				t.Errorf("%+v does not show %q", found, c.shows)
			}
			if evidence(found, "geheim") {
				t.Error("a password is told")
			}
		})
	}
}

// TestProxyOfTheMirror: on a loopback address there is none.
func TestProxyOfTheMirror(t *testing.T) {
	e := node(t, nil)
	setRegistries(t, e, upstream.Config{}, "*.test")
	d := daemon{env: map[string]string{"HTTP_PROXY": "http://proxy.test:3128", "NO_PROXY": "localhost"}, from: "a process"}
	if found := checkProxy(t.Context(), e, d); len(found) > 0 {
		t.Errorf("%+v", found)
	}
	e.Mirror = "http://10.0.0.7:6500"
	found := checkProxy(t.Context(), e, d)
	if diff := cmp.Diff([]string{"proxy-mirror"}, ids(found)); diff != "" || !evidence(found, `Environment="NO_PROXY=localhost,10.0.0.7"`) {
		t.Errorf("%s%+v", diff, found)
	}
}

// TestDaemon: the process behind the socket is containerd, whatever it is called and
// whatever else is.
func TestDaemon(t *testing.T) {
	e := node(t, nil)
	e.Root, e.Socket = "/", filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := findDaemon(e, "/proc")
	if want := "process " + strconv.Itoa(os.Getpid()) + " ("; d.err != nil || !strings.HasPrefix(d.from, want) || d.env["PATH"] != os.Getenv("PATH") {
		t.Errorf("%+v, want %s", d, want)
	}
	for args, want := range map[string]string{
		"containerd --config /a.toml --log-level info": "/a.toml", "containerd -c=/b.toml": "/b.toml", "containerd -c /c.toml": "/c.toml",
		"containerd --config": "", "containerd --config relative.toml": "", "containerd": "", "containerd --configuration /x": "",
	} {
		if got := configArgument(strings.Fields(args)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}
