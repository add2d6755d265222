package upstream

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestParseLimit(t *testing.T) {
	for _, tt := range []struct {
		total, left string
		want        Limit
		ok          bool
	}{
		{"100;w=21600", "76;w=21600", Limit{100, 76, 6 * time.Hour}, true}, // Docker Hub
		{"100", "0", Limit{100, 0, 0}, true},
		{"100", "1;w=60", Limit{100, 1, time.Minute}, true},
		{" 100 ; w=60;comment=\"x\"", "7", Limit{100, 7, time.Minute}, true},
		{"100, 100;w=60, 5000;w=3600", "50", Limit{100, 50, 0}, true}, // the drafts' list
		{"100;w=2147483647", "50", Limit{100, 50, maxWindow}, true},
		{"", "", Limit{}, false},
		{"100", "", Limit{}, false},
		{"", "5", Limit{}, false},
		{"0", "0", Limit{}, false},
		{"10", "11", Limit{}, false},
		{"-1", "-2", Limit{}, false},
		{"1e3", "5", Limit{}, false},
		{"99999999999999999999", "5", Limit{}, false},
		{"2147483648", "5", Limit{}, false},
		{"100;w=-1", "5", Limit{}, false},
		{"100;w=", "5", Limit{}, false},
		{"100;w=99999999999999999999", "5", Limit{}, false},
		{";w=5", ";", Limit{}, false},
	} {
		h := http.Header{}
		if tt.total != "" {
			h.Set(limitHeader, tt.total)
		}
		if tt.left != "" {
			h.Set(leftHeader, tt.left)
		}
		if got, ok := parseLimit(h); got != tt.want || ok != tt.ok {
			t.Errorf("%q, %q: %+v, %t; want %+v, %t", tt.total, tt.left, got, ok, tt.want, tt.ok)
		}
	}
	twice := http.Header{limitHeader: {"100", "200"}, leftHeader: {"50"}}
	if got, ok := parseLimit(twice); ok {
		t.Errorf("a header twice: %+v", got)
	}
}

func FuzzParseLimit(f *testing.F) {
	f.Add("100;w=21600", "76;w=21600")
	f.Add("100, 100;w=60", "5")
	f.Fuzz(func(t *testing.T, total, left string) {
		l, ok := parseLimit(http.Header{http.CanonicalHeaderKey(limitHeader): {total}, http.CanonicalHeaderKey(leftHeader): {left}})
		if ok && (l.Total <= 0 || l.Left < 0 || l.Left > l.Total || l.Window < 0 || l.Window > maxWindow) {
			t.Fatalf("%q, %q: %+v", total, left, l)
		}
	})
}

func TestLimit(t *testing.T) {
	tell, status := true, http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.URL.Path != "/v2/library/app/manifests/v1" {
			t.Errorf("%s %s is asked", r.Method, r.URL.Path)
		}
		if tell {
			w.Header().Set("ratelimit-limit", "100;w=21600")
			w.Header().Set("ratelimit-remaining", "3;w=21600")
		}
		w.WriteHeader(status)
	}))
	defer srv.Close()
	host := srv.Listener.Addr().String()
	c, err := New(Config{Insecure: []string{host}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	repo := Repository{Registry: host, Name: "library/app"}
	if l, ok, err := c.Limit(t.Context(), repo, "v1"); err != nil || !ok || l != (Limit{100, 3, 6 * time.Hour}) {
		t.Errorf("%+v, %t, %v", l, ok, err)
	}
	tell = false
	if l, ok, err := c.Limit(t.Context(), repo, "v1"); err != nil || ok {
		t.Errorf("a registry that does not tell: %+v, %t, %v", l, ok, err)
	}
	status = http.StatusForbidden
	if _, ok, err := c.Limit(t.Context(), repo, "v1"); err == nil || ok {
		t.Errorf("a registry that refuses: %t, %v", ok, err)
	}
	if _, _, err := c.Limit(t.Context(), repo, "no/tag"); err == nil {
		t.Error("no error for a malformed tag")
	}
}
