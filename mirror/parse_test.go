package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseName(t *testing.T) {
	for name, ok := range map[string]bool{
		"alpine": true, "library/alpine": true, "a/b/c/d/e": true, "a--b": true, "a__b": true, "a.b_c-d": true, "0": true,
		strings.Repeat("a", 255): true,
		"":                       false, "/": false, "a/": false, "/a": false, "a//b": false, "A": false, "a/../b": false, "..": false,
		".": false, "a.": false, "-a": false, "a..b": false, "a___b": false, "a b": false, "a\x00": false, "a\n": false, "ä": false,
		strings.Repeat("a", 256): false, "a:b": false, "a@b": false, `a\b`: false, "a%2fb": false,
	} {
		if _, err := parseName(name); (err == nil) != ok {
			t.Errorf("parseName(%.40q) = %v, want ok %t", name, err, ok)
		}
	}
}

func TestParseReference(t *testing.T) {
	hex := strings.TrimPrefix(someDigest, "sha256:")
	for _, c := range []struct {
		in          string
		tag, digest bool
		unsupported bool
	}{
		{in: "latest", tag: true},
		{in: "v1.2.3-rc_1", tag: true},
		{in: "_", tag: true},
		{in: strings.Repeat("x", 128), tag: true},
		{in: someDigest, digest: true},
		{in: hex, tag: true}, // 64 characters are a fine tag
		{in: ""},
		{in: strings.Repeat("x", 129)},
		{in: ".hidden"},
		{in: "-x"},
		{in: "a/b"},
		{in: "a\n"},
		{in: "sha256:"},
		{in: "sha256:" + strings.ToUpper(hex)},
		{in: "sha256:" + hex[1:]},
		{in: "sha256:" + hex + "0"},
		{in: "sha256:../../../../etc/passwd"},
		{in: "sha512:" + hex + hex, unsupported: true},
		{in: "md5:d41d8cd98f00b204e9800998ecf8427e", unsupported: true},
		{in: "SHA256:" + hex, unsupported: true},
	} {
		r, err := parseReference(c.in)
		if got := err == nil; got != (c.tag || c.digest) {
			t.Errorf("parseReference(%.80q): %v", c.in, err)
			continue
		}
		if errors.Is(err, errUnsupportedDigest) != c.unsupported {
			t.Errorf("parseReference(%.80q) = %v, unsupported should be %t", c.in, err, c.unsupported)
		}
		if err == nil && ((r.tag != "") != c.tag || (r.digest != "") != c.digest || r.String() != c.in) {
			t.Errorf("parseReference(%.80q) = %+v", c.in, r)
		}
	}
}

func TestParseRegistry(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io": "docker.io", "Docker.IO": "docker.io", "localhost:5000": "localhost:5000", "10.0.0.1:5000": "10.0.0.1:5000",
		"[::1]:5000": "[::1]:5000", "[0:0::1]": "[::1]", "registry": "registry", "a-b.c": "a-b.c", "r:1": "r:1", "r:65535": "r:65535",
		"": "", "a..b": "", ".a": "", "a.": "", "-a": "", "a_b": "", "a/b": "", "user@host": "", "a:": "", "a:0": "", "a:65536": "", "a:+1": "",
		"a:01": "", "a:b": "", "::1": "", "[::1": "", "[::1]5000": "", "[::1]:": "", "[fe80::1%eth0]": "", "[10.0.0.1]": "", "a b": "", "a?b": "",
		"a#b": "", "http://a": "", "ä.de": "", "a\x00": "", strings.Repeat("a", 64) + ".io": "", strings.Repeat("a.", 128) + "io": "",
	} {
		got, err := parseRegistry(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("parseRegistry(%.80q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestParseNamespace(t *testing.T) {
	for _, c := range []struct {
		query, want string
		bad         bool
	}{
		{query: ""},
		{query: "other=1"},
		{query: "ns=docker.io", want: "docker.io"},
		{query: "ns=127.0.0.1%3A5000", want: "127.0.0.1:5000"},
		{query: "ns=", bad: true},
		{query: "ns=a&ns=b", bad: true},
		{query: "ns=a&ns=a", bad: true},
		{query: "ns=%", bad: true},
		{query: "ns=a;b", bad: true},
		{query: "ns=a%00b", bad: true},
		{query: "ns=a%2Fv2", bad: true},
		{query: "ns=" + strings.Repeat("a", maxQuery), bad: true},
	} {
		got, err := parseNamespace(c.query)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("parseNamespace(%.60q) = %q, %v", c.query, got, err)
		}
	}
}

func TestRegistries(t *testing.T) {
	r, err := NewRegistries([]string{"docker.io", "*.example.com", "10.0.0.1:5000", "[::1]:5000", "LOCAL:5000", "mirror-[ab].net"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := NewRegistries([]string{"*"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host     string
		ok, star bool
	}{
		{"docker.io", true, true},
		{"a.b.example.com", true, true},
		{"mirror-a.net", true, true},
		{"mirror-c.net", false, true},
		{"example.com", false, true},
		{"local:5000", true, true},
		{"10.0.0.1:5000", true, false},
		{"10.0.0.1", false, false},
		{"[::1]:5000", true, false},
		{"localhost", false, false},
		{"localhost:6500", false, false},
		{"foo.localhost", false, false},
		{"169.254.169.254", false, false},
		{"0x7f.1", false, false},
		{"2130706433", false, false},
	} {
		if got := r.Allowed(c.host); got != c.ok {
			t.Errorf("allowed(%s) = %t", c.host, got)
		}
		if got := all.Allowed(c.host); got != c.star {
			t.Errorf("* allows %s: %t", c.host, got)
		}
	}
	for _, bad := range []string{"", "http://docker.io", "a b", "[", "[a"} {
		if _, err := NewRegistries([]string{bad}); err == nil {
			t.Errorf("registry %q is accepted", bad)
		}
	}
}

func TestParseRange(t *testing.T) {
	whole := byteRange{n: 1000}
	for _, c := range []struct {
		header string
		want   byteRange
		err    error
	}{
		{header: "", want: whole},
		{header: "bytes=0-", want: byteRange{0, 1000, true, false}},
		{header: "bytes=500-", want: byteRange{500, 500, true, false}},
		{header: "BYTES=1-1", want: byteRange{1, 1, true, true}},
		{header: "bytes=0-9999", want: byteRange{0, 1000, true, true}},
		{header: "bytes=-1", want: byteRange{999, 1, true, true}},
		{header: "bytes=-5000", want: byteRange{0, 1000, true, true}},
		{header: "bytes=999-", want: byteRange{999, 1, true, false}},
		{header: "bytes=1-99999999999999999999999999", want: byteRange{1, 999, true, true}},
		{header: "bytes= 1-2 ,", want: byteRange{1, 2, true, true}},
		{header: "bytes=0-9,10-19", want: byteRange{0, 20, true, true}},
		{header: "bytes=10-19,0-9", want: byteRange{0, 20, true, true}},
		{header: "bytes=0-99,50-60,2000-", want: byteRange{0, 100, true, true}},
		{header: "bytes=0-9,10-", want: byteRange{0, 1000, true, false}},
		{header: "bytes=0-9,20-29", err: errManyRanges},
		{header: "bytes=" + strings.Repeat("1-2,", maxRanges+1), err: errManyRanges},
		{header: "bytes=1000-", err: errUnsatisfiable},
		{header: "bytes=99999999999999999999-", err: errUnsatisfiable},
		{header: "bytes=-0", err: errUnsatisfiable},
		{header: "bytes=1000-2000,3000-", err: errUnsatisfiable},
		// Malformed: as if absent.
		{header: "bytes", want: whole},
		{header: "bytes=", want: whole},
		{header: "bytes=-", want: whole},
		{header: "bytes=2-1", want: whole},
		{header: "bytes=a-b", want: whole},
		{header: "bytes=--1", want: whole},
		{header: "bytes=+1-2", want: whole},
		{header: "items=0-1", want: whole},
		{header: "bytes=0-1,x", want: whole},
	} {
		got, err := parseRange(c.header, 1000)
		if !errors.Is(err, c.err) {
			t.Errorf("parseRange(%.60q): %v, want %v", c.header, err, c.err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(byteRange{})); c.err == nil && diff != "" {
			t.Errorf("parseRange(%.60q):\n%s", c.header, diff)
		}
	}
	if got, err := parseRange("bytes=0-", 0); err != nil || got.partial {
		t.Errorf("range of an empty blob: %+v, %v", got, err)
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-1", "bytes=0-1,2-3", "bytes=5-2", "bytes=99999999999999999999-", "x", "bytes=,,1-"} {
		f.Add(s, int64(1000))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		r, err := parseRange(header, size)
		if err != nil {
			return
		}
		if r.off < 0 || r.n < 0 || r.off+r.n > size || (r.partial && r.n == 0) || (!r.partial && (r.off != 0 || r.n != size)) {
			t.Fatalf("parseRange(%q, %d) = %+v", header, size, r)
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"latest", someDigest, "sha512:00", "sha256:", "../x", "a:b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s)
		if err == nil && (r.String() != s || strings.ContainsAny(s, "/\\\x00\r\n ")) {
			t.Fatalf("parseReference(%q) = %+v", s, r)
		}
	})
}

func FuzzNamespace(f *testing.F) {
	for _, s := range []string{"ns=docker.io", "ns=a%3A5000", "ns=[::1]:1", "ns=[::1%25eth0]", "ns=a&ns=b", "ns=0x7f.1", "ns=%zz"} {
		f.Add(s)
	}
	star, err := NewRegistries([]string{"*"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, q string) {
		ns, err := parseNamespace(q)
		if err != nil || ns == "" {
			return
		}
		again, err := parseRegistry(ns)
		if err != nil || again != ns {
			t.Fatalf("%q gives %q, which gives %q, %v", q, ns, again, err)
		}
		// A URL with it has this very host, and no credentials or path.
		u, err := url.Parse("https://" + ns + "/v2/")
		if err != nil || u.Host != ns || u.User != nil || u.Path != "/v2/" {
			t.Fatalf("%q is not a host: %v", ns, err)
		}
		if _, err := netip.ParseAddr(u.Hostname()); err == nil && star.Allowed(ns) {
			t.Fatalf("* opens the address %q", ns)
		}
	})
}

func TestParseAuthorization(t *testing.T) {
	for name, c := range map[string]struct {
		in   []string
		want string
		ok   bool
	}{
		"none":       {in: nil, ok: true},
		"empty":      {in: []string{""}, ok: true},
		"bearer":     {in: []string{"Bearer abc.def-_~+/="}, want: "Bearer abc.def-_~+/=", ok: true},
		"lower case": {in: []string{"basic Ym9iOng="}, want: "basic Ym9iOng=", ok: true},
		"two":        {in: []string{"Bearer a", "Bearer b"}},
		"scheme":     {in: []string{"Negotiate abc"}},
		"no value":   {in: []string{"Bearer "}},
		"bare":       {in: []string{"Bearer"}},
		"two values": {in: []string{"Bearer a b"}},
		"line break": {in: []string{"Bearer a\r\nHost: b"}},
		"zero byte":  {in: []string{"Bearer a\x00"}},
		"not ASCII":  {in: []string{"Bearer é"}},
		"a long one": {in: []string{"Bearer " + strings.Repeat("x", maxAuthorization)}},
	} {
		got, err := parseAuthorization(c.in)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzAuthorization(f *testing.F) {
	for _, s := range []string{"", "Bearer x", "Basic eDp5", "bearer  x", "Bearer x\ny", "Digest a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseAuthorization([]string{s})
		switch {
		case err != nil && s != "" && len(s) > 3 && strings.Contains(err.Error(), s[3:]) && len(s) > 60:
			t.Fatalf("the error %v repeats the header", err)
		case err == nil && (got != s || len(got) > maxAuthorization || strings.ContainsAny(got, "\r\n\x00")):
			t.Fatalf("%q becomes %q", s, got)
		}
	})
}

// recording is an Upstream that notes what it is asked about.
type recording struct {
	yes
	mu   *sync.Mutex
	seen *[]Repository
}

func (u recording) Size(ctx context.Context, r Repository, d digest.Digest) (int64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	*u.seen = append(*u.seen, r)
	return u.yes.Size(ctx, r, d)
}

// TestHostilePrefix: the path names one registry, as ns does, and nothing else;
// what is not a registry's name is asked about nowhere.
func TestHostilePrefix(t *testing.T) {
	const rest = "/v2/a/blobs/" + aBlob
	for prefix, want := range map[string]string{
		"/registry/docker.io":                                 "docker.io/a",
		"/registry/DOCKER.io":                                 "docker.io/a",
		"/registry/r.example:5000":                            "r.example:5000/a",
		"/registry/r.example%3A5000":                          "r.example:5000/a",
		"/registry/docker.io/v2/registry/r.example":           "docker.io/registry/r.example/v2/a",
		"/registry/docker.io/registry/r.example":              reasonRoute,
		"/registry/docker.io/":                                reasonRoute,
		"/registry/":                                          reasonRoute,
		"/registry":                                           reasonRoute,
		"/Registry/docker.io":                                 reasonRoute,
		"//registry/docker.io":                                reasonRoute,
		"/x/registry/docker.io":                               reasonRoute,
		"/registry/..":                                        reasonNamespace,
		"/registry/.":                                         reasonNamespace,
		"/registry/%2e%2e":                                    reasonNamespace,
		"/registry/%20":                                       reasonNamespace,
		"/registry/%00":                                       reasonNamespace,
		"/registry/docker.io%0d%0aHost:x":                     reasonNamespace,
		"/registry/docker.io%2f..":                            reasonRoute,
		"/registry/docker.io%23":                              reasonNamespace,
		"/registry/docker.io%3fns=r.example":                  reasonNamespace,
		"/registry/user:password@docker.io":                   reasonNamespace,
		"/registry/http:docker.io":                            reasonNamespace,
		"/registry/docker.io:0":                               reasonNamespace,
		"/registry/docker.io:99999":                           reasonNamespace,
		"/registry/docker.io:":                                reasonNamespace,
		"/registry/%5B::1%25lo%5D:80":                         reasonNamespace,
		"/registry/" + strings.Repeat("a.", 200) + "io":       reasonNamespace,
		"/registry/127.0.0.1:80":                              reasonRegistry,
		"/registry/169.254.169.254":                           reasonRegistry,
		"/registry/%5B::1%5D:80":                              reasonRegistry,
		"/registry/0x7f.1":                                    reasonRegistry,
		"/registry/localhost:6500":                            reasonRegistry,
		"/registry/localhost:6500/v2/registry/localhost:6500": reasonRegistry,
	} {
		u := recording{yes{100}, new(sync.Mutex), new([]Repository)}
		tm := newMirror(t, &scripted{}, u, nil, "*")
		r := tm.do(t, http.MethodHead, prefix+rest)
		var got string
		if r.status == http.StatusOK {
			got = fmt.Sprintf("%s/%s", (*u.seen)[0].Registry, (*u.seen)[0].Name)
		} else {
			r = tm.do(t, http.MethodGet, prefix+rest)
			if got = r.reason(); r.status != http.StatusNotFound || len(*u.seen) > 0 {
				t.Errorf("%s: %d, and asked about %v", prefix, r.status, *u.seen)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", prefix, got, want)
		}
	}
}

// FuzzRequest sends anything to the handler: no panic, only the statuses that
// the package promises, and no metric label from the input.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2", "/v2/a/manifests/latest?ns=docker.io", "/v2/a/blobs/" + someDigest + "?ns=docker.io", "/v2/a/b/manifests/x/manifests/y",
		"/registry/docker.io/v2/a/manifests/latest", "/registry/../v2/a/manifests/b",
		"/registry/docker.io/v2/", "/registry/docker.io/registry/docker.io/v2/a/blobs/" + someDigest, "/registry/docker.io%2f..%2fx/v2/a/blobs/" + someDigest,
		"/registry/u:p@docker.io/v2/a/blobs/" + someDigest, "/registry/[::1%25lo]:80/v2/a/blobs/" + someDigest, "/registry//v2/a/blobs/" + someDigest, "/v2/%2e%2e/manifests/x?ns=docker.io", "/v2//manifests/x?ns=docker.io",
		"/v2/a/manifests/%00?ns=docker.io", "/v2/a/blobs/sha256:zz?ns=docker.io", "//v2/a/manifests/b", "/v2/a/manifests/b?ns=%", "*", "",
	} {
		f.Add("GET", s, "bytes=0-1", "")
		f.Add("HEAD", s, "", "Basic eDp5")
		f.Add("DELETE", s, "", "")
	}
	reg := prometheus.NewRegistry()
	m, err := New(Config{Swarm: &scripted{}, Upstream: sole{yes{100}}, Registries: []string{"docker.io"}, Log: zerolog.Nop(), Registerer: reg})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(m.Close)
	f.Fuzz(func(t *testing.T, method, target, rangeHeader, auth string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL, r.RequestURI = method, u, target
		r.Header.Set("Range", rangeHeader)
		r.Header.Set("Authorization", auth)
		w := httptest.NewRecorder()
		m.Handler().ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Fatalf("%s %q is answered %d", method, target, w.Code)
		}
		if method != http.MethodGet && method != http.MethodHead && w.Code < 400 {
			t.Fatalf("%s %q is answered %d", method, target, w.Code)
		}
		fams, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fams {
			if f.GetName() != "shoal_mirror_requests_total" {
				continue
			}
			for _, s := range f.GetMetric() {
				for _, l := range s.GetLabel() {
					switch l.GetValue() {
					case "docker.io", otherRegistry, "hit", "miss":
					default:
						t.Fatalf("label %s=%q", l.GetName(), l.GetValue())
					}
				}
			}
		}
	})
}
