package upstream

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRepositoryNames(t *testing.T) {
	c := newClient(t, Config{}, "plain.test:5000", "docker.example")
	for _, tt := range []struct {
		name       string
		repo       Repository
		ref        string
		want       string // URL of the manifest
		wantFailed bool
	}{
		{name: "docker hub", repo: Repository{"docker.io", "library/alpine"}, ref: "3.20", want: "https://registry-1.docker.io/v2/library/alpine/manifests/3.20"},
		{name: "docker hub, old name", repo: Repository{"index.docker.io", "library/alpine"}, ref: "3", want: "https://registry-1.docker.io/v2/library/alpine/manifests/3"},
		{name: "port, insecure", repo: Repository{"plain.test:5000", "a"}, ref: "x", want: "http://plain.test:5000/v2/a/manifests/x"},
		{name: "insecure without port does not cover ports", repo: Repository{"docker.example:81", "a"}, ref: "x", want: "https://docker.example:81/v2/a/manifests/x"},
		{name: "case of the host", repo: Repository{"PLAIN.test:5000", "a"}, ref: "x", want: "http://plain.test:5000/v2/a/manifests/x"},
		{name: "address", repo: Repository{"[::1]:5000", "a"}, ref: "x", want: "https://[::1]:5000/v2/a/manifests/x"},
		{name: "digest", repo: Repository{"r.test", "a/b__c/d-e.f"}, ref: "sha256:" + strings.Repeat("0a", 32), want: "https://r.test/v2/a/b__c/d-e.f/manifests/sha256:" + strings.Repeat("0a", 32)},
		{name: "dots", repo: Repository{"r.test", "a/../b"}, ref: "x", wantFailed: true},
		{name: "empty name", repo: Repository{"r.test", ""}, ref: "x", wantFailed: true},
		{name: "upper case name", repo: Repository{"r.test", "A"}, ref: "x", wantFailed: true},
		{name: "long name", repo: Repository{"r.test", strings.Repeat("a", 256)}, ref: "x", wantFailed: true},
		{name: "query in name", repo: Repository{"r.test", "a?b"}, ref: "x", wantFailed: true},
		{name: "host with path", repo: Repository{"r.test/x", "a"}, ref: "x", wantFailed: true},
		{name: "host with user", repo: Repository{"u@r.test", "a"}, ref: "x", wantFailed: true},
		{name: "empty host", repo: Repository{"", "a"}, ref: "x", wantFailed: true},
		{name: "port out of range", repo: Repository{"r.test:65536", "a"}, ref: "x", wantFailed: true},
		{name: "tag with slash", repo: Repository{"r.test", "a"}, ref: "x/y", wantFailed: true},
		{name: "empty tag", repo: Repository{"r.test", "a"}, ref: "", wantFailed: true},
		{name: "long tag", repo: Repository{"r.test", "a"}, ref: strings.Repeat("x", 129), wantFailed: true},
		{name: "other digest", repo: Repository{"r.test", "a"}, ref: "sha512:" + strings.Repeat("0a", 64), wantFailed: true},
		{name: "short digest", repo: Repository{"r.test", "a"}, ref: "sha256:0a", wantFailed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, _, err := manifestTask("get manifest", tt.repo, tt.ref)
			if (err != nil) != tt.wantFailed {
				t.Fatalf("error %v, want one: %v", err, tt.wantFailed)
			}
			if err == nil {
				if diff := cmp.Diff(tt.want, k.manifestURL(c).String()); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestParseChallenges(t *testing.T) {
	type ch = challenge
	opt := cmp.AllowUnexported(challenge{})
	for _, tt := range []struct {
		name string
		in   []string
		want []challenge
	}{
		{"none", nil, nil},
		{"docker hub", []string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull"`},
			[]ch{{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/alpine:pull"}}}},
		{"comma within quotes", []string{`Bearer realm="r",scope="repository:a:pull,push"`},
			[]ch{{"bearer", map[string]string{"realm": "r", "scope": "repository:a:pull,push"}}}},
		{"two in one header", []string{`Basic realm="a b", Bearer realm=c , service = "d"`},
			[]ch{{"basic", map[string]string{"realm": "a b"}}, {"bearer", map[string]string{"realm": "c", "service": "d"}}}},
		{"two headers", []string{`Basic realm=a`, `bEARER Realm=b`},
			[]ch{{"basic", map[string]string{"realm": "a"}}, {"bearer", map[string]string{"realm": "b"}}}},
		{"escapes", []string{`Basic realm="a\"b\\c"`}, []ch{{"basic", map[string]string{"realm": `a"b\c`}}}},
		{"bare scheme", []string{`Negotiate, Basic realm=a`}, []ch{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "a"}}}},
		{"token68 is a fault", []string{`Negotiate aGVsbG8==, Basic realm=a`}, nil},
		{"unclosed quote", []string{`Basic realm="a`}, nil},
		{"parameter twice", []string{`Basic realm=a,realm=b`}, nil},
		{"value too long", []string{`Basic realm="` + strings.Repeat("x", maxParam+1) + `"`}, nil},
		{"no scheme", []string{`="x"`}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, parseChallenges(tt.in), opt); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestChallengesRoundTrip writes challenges as RFC 9110 tells and reads them
// back.
func TestChallengesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token := rapid.StringMatching(`[a-z][a-z0-9_-]{0,8}`)
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
		var want []challenge
		var header []string
		for range rapid.IntRange(1, 3).Draw(t, "challenges") {
			params := rapid.MapOfN(token, rapid.StringMatching(`[ -~]{0,20}`), 1, 4).Draw(t, "params")
			c := challenge{scheme: token.Draw(t, "scheme"), params: params}
			want = append(want, c)
			var ps []string
			for name, value := range params {
				ps = append(ps, name+`="`+quoted.Replace(value)+`"`)
			}
			header = append(header, c.scheme+" "+strings.Join(ps, ", "))
		}
		got := parseChallenges([]string{strings.Join(header, ", ")})
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(challenge{})); diff != "" {
			t.Fatalf("%q: %s", header, diff)
		}
	})
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{
		``, `Basic realm="x"`, `Bearer realm="https://a/b",service=c,scope="d,e"`, `Negotiate a==`,
		`,,, Basic ,,realm=a,`, `a b c d`, `Basic realm="\`, "Basic\trealm = \"\\\"\"",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parseChallenges([]string{s, s})
		if len(got) > maxChallenges {
			t.Fatalf("%d challenges", len(got))
		}
		for _, c := range got {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || len(c.params) > maxParams {
				t.Fatalf("%+v", c)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		in   string
		want time.Duration
	}{
		{"", 0}, {"0", 0}, {"7", 7 * time.Second}, {" 7 ", 7 * time.Second}, {"-7", 0}, {"7.5", 0}, {"soon", 0},
		{"4294967295", maxRetryAfter}, {"99999999999999999999", 0},
		{now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second},
		{now.Add(-time.Hour).Format(http.TimeFormat), 0},
		{now.AddDate(900, 0, 0).Format(http.TimeFormat), maxRetryAfter},
	} {
		if got := retryAfter(tt.in, now); got != tt.want {
			t.Errorf("retryAfter(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "5", "-1", "1e9", "Fri, 31 Dec 1999 23:59:59 GMT", "99999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(s, time.Unix(0, 0)); d < 0 || d > maxRetryAfter {
			t.Fatalf("%q: %v", s, d)
		}
	})
}

func TestBackoff(t *testing.T) {
	r := Config{}.withDefaults().Retry
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1000).Draw(t, "n")
		jitter := rapid.Float64Range(0, 0.999999).Draw(t, "jitter")
		d := r.backoff(n, jitter)
		if d < r.Base/2 || d > r.MaxWait {
			t.Fatalf("backoff(%d, %v) = %v", n, jitter, d)
		}
		if later := r.backoff(n+1, jitter); later < d {
			t.Fatalf("backoff falls from %v to %v", d, later)
		}
	})
	var got []time.Duration
	for n := range 7 {
		got = append(got, r.backoff(n, 0))
	}
	want := []time.Duration{250e6, 500e6, 1e9, 2e9, 4e9, 8e9, 8e9}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseContentRange(t *testing.T) {
	for _, tt := range []struct {
		in             string
		off, end, size int64
		wantErr        bool
	}{
		{in: "bytes 0-0/1", off: 0, end: 1, size: 1},
		{in: "bytes 5-9/10", off: 5, end: 10, size: 10},
		{in: "bytes 5-9/*", off: 5, end: 10, size: -1},
		{in: "bytes 5-4/10", wantErr: true},
		{in: "bytes 5-10/10", wantErr: true},
		{in: "bytes */10", wantErr: true},
		{in: "items 0-1/2", wantErr: true},
		{in: "bytes 0-1", wantErr: true},
		{in: "bytes 0-9999999999999999999/*", wantErr: true},
		{in: "", wantErr: true},
	} {
		off, end, size, err := parseContentRange(tt.in)
		if (err != nil) != tt.wantErr || off != tt.off || end != tt.end || size != tt.size {
			t.Errorf("parseContentRange(%q) = %d, %d, %d, %v", tt.in, off, end, size, err)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 1-2/*", "bytes 9-1/3", "bytes */3", "bytes 999999999999999999-999999999999999999/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, end, size, err := parseContentRange(s)
		if err != nil {
			return
		}
		total := "*"
		if size >= 0 {
			total = fmt.Sprint(size)
		}
		again, againEnd, againSize, err := parseContentRange(fmt.Sprintf("bytes %d-%d/%s", off, end-1, total))
		if err != nil || off < 0 || end <= off || again != off || againEnd != end || againSize != size {
			t.Fatalf("%q: %d %d %d %v", s, off, end, size, err)
		}
	})
}

func TestParseToken(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		life           time.Duration
	}{
		{"token", `{"token":"a.b","expires_in":300}`, "a.b", 300 * time.Second},
		{"access_token", `{"access_token":"a"}`, "a", defaultTokenLife},
		{"both", `{"token":"a","access_token":"b"}`, "a", defaultTokenLife},
		{"life as text", `{"token":"a","expires_in":"90"}`, "a", 90 * time.Second},
		{"negative life", `{"token":"a","expires_in":-1}`, "a", defaultTokenLife},
		{"endless life", `{"token":"a","expires_in":1e300}`, "a", maxTokenLife},
		{"none", `{}`, "", 0},
		{"header injection", `{"token":"a\r\nHost: b"}`, "", 0},
		{"too long", `{"token":"` + strings.Repeat("a", maxToken+1) + `"}`, "", 0},
		{"body too long", `{"token":"a","x":"` + strings.Repeat("a", maxTokenBody) + `"}`, "", 0},
		{"no JSON", `<html>`, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			token, life, err := parseToken([]byte(tt.in))
			if (err == nil) != (tt.want != "") {
				t.Fatal(err)
			}
			if err == nil && (token != tt.want || life != tt.life) {
				t.Errorf("%q for %v", token, life)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	for _, s := range []string{`{"token":"a"}`, `{"access_token":"b","expires_in":60}`, `{"expires_in":"x"}`, `[]`, `{"token":"a b"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		token, life, err := parseToken(p)
		if err == nil && (!validToken(token) || life < 0 || life > maxTokenLife) {
			t.Fatalf("%q: %q for %v", p, token, life)
		}
	})
}

func TestRedirectAndRealm(t *testing.T) {
	c := newClient(t, Config{}, "plain.test", "plain2.test:80")
	for _, tt := range []struct {
		name, from, to string
		redirect       string // where a redirect goes to; empty: refused
		realm          bool   // allowed as a realm
	}{
		{"https to https", "r.test", "https://s3.test/x?sig=1", "https://s3.test/x?sig=1", true},
		{"relative", "r.test", "/x", "https://r.test/x", false},
		{"https to http", "r.test", "http://r.test/x", "", false},
		{"https to http at an insecure host", "r.test", "http://plain.test/x", "", false},
		{"http to https", "plain.test", "https://s3.test/x", "https://s3.test/x", true},
		{"http to itself", "plain.test", "http://plain.test/x", "http://plain.test/x", true},
		{"http to another insecure host", "plain.test", "http://plain2.test:80/x", "http://plain2.test:80/x", true},
		{"http to another host", "plain.test", "http://s3.test/x", "", false},
		{"http to another port", "plain.test", "http://plain.test:81/x", "", false},
		{"user", "r.test", "https://u:p@s3.test/x", "", false},
		{"no host", "r.test", "https:///x", "", false},
		{"file", "r.test", "file:///etc/passwd", "", false},
		{"fragment", "r.test", "https://s3.test/x#y", "https://s3.test/x", true},
		{"empty", "r.test", "", "", false},
		{"malformed", "r.test", "https://s3.test/%zz", "", false},
		{"long", "r.test", "https://s3.test/" + strings.Repeat("x", maxURL), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := c.Endpoint(tt.from)
			u, err := c.redirect(from, tt.to)
			switch {
			case (err == nil) != (tt.redirect != ""):
				t.Errorf("redirect to %v, %v", u, err)
			case err == nil && u.String() != tt.redirect:
				t.Errorf("redirect to %v", u)
			}
			if u, err := c.realm(from, tt.to); (err == nil) != tt.realm {
				t.Errorf("realm %v, %v", u, err)
			}
		})
	}
}

func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"/x", "//evil.test/x", "https://s3.test/x?y=z", "http://r.test/", "https://a@b/", "HTTPS://S3.test:99999/", `https://[::1]:5/\`} {
		f.Add(s)
	}
	c := newClient(f, Config{}, "plain.test")
	f.Fuzz(func(t *testing.T, s string) {
		for _, from := range []string{"r.test", "plain.test"} {
			u, err := c.redirect(c.Endpoint(from), s)
			if err != nil {
				continue
			}
			secure := u.Scheme == "https"
			if u.User != nil || !secure && (from != "plain.test" || u.Host != "plain.test" && !c.insecure[strings.ToLower(u.Host)]) {
				t.Fatalf("%s leads to %q", from, u)
			}
		}
	})
}

func TestPublicEnough(t *testing.T) {
	for a, want := range map[string]bool{
		"8.8.8.8": true, "10.0.0.1": true, "192.168.1.1": true, "100.64.0.1": true, "2001:db8::1": true, "fd00::1": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "::": false,
		"169.254.169.254": false, "::ffff:169.254.169.254": false, "fe80::1": false, "224.0.0.1": false, "ff02::1": false,
		"255.255.255.255": false, "fd00:ec2::254": false,
	} {
		if got := publicEnough(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
