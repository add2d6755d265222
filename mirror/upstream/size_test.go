package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

func TestBlobSize(t *testing.T) {
	p, d := content(1234)
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   int64
		err    error
	}{
		{"head", func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p) }, 1234, nil},
		{"head not allowed", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			serveBytes(w, r, p)
		}, 1234, nil},
		{"head without length", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				return
			}
			_, _ = w.Write(p)
		}, 1234, nil},
		{"signed for get only", func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/signed":
				// By the server's address, which is another host for the client.
				http.Redirect(w, r, "http://"+strings.Replace(r.Host, "127.0.0.1", "localhost", 1)+"/signed", http.StatusTemporaryRedirect)
			case r.Method == http.MethodHead:
				w.WriteHeader(http.StatusForbidden)
			default:
				serveBytes(w, r, p)
			}
		}, 1234, nil},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 0, ErrDenied},
		{"not found", http.NotFound, 0, swarm.ErrNotFound},
		{"empty", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }, 0, ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, tt.answer)
			c := newClient(t, Config{}, host, strings.Replace(host, "127.0.0.1", "localhost", 1))
			got, err := c.Blob(Repository{host, "a"}, d, 0).Size(t.Context())
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
}

// TestShortcut follows the redirect once for many ranges, until it stops
// working or is too old.
func TestShortcut(t *testing.T) {
	p, d := content(1000)
	var asked, stored atomic.Int64
	var valid atomic.Int64
	store := serve(t, func(w http.ResponseWriter, r *http.Request) {
		stored.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("object store sees the authorization")
		}
		if r.URL.Query().Get("sig") != strconv.FormatInt(valid.Load(), 10) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		serveBytes(w, r, p)
	})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		http.Redirect(w, r, fmt.Sprintf("http://%s/x?sig=%d", store, valid.Load()), http.StatusTemporaryRedirect)
	})
	now := time.Unix(0, 0)
	c := newClient(t, Config{Now: func() time.Time { return now }}, host, store)
	b := c.Blob(Repository{host, "a"}, d, 1000)
	for _, step := range []struct {
		name          string
		before        func()
		asked, stored int64
	}{
		{"first", func() {}, 1, 1},
		{"again", func() {}, 1, 2},
		{"signature expired", func() { valid.Add(1) }, 2, 4},
		{"again", func() {}, 2, 5},
		{"old", func() { now = now.Add(shortcutLife) }, 3, 6},
	} {
		step.before()
		got, err := read(t.Context(), b, 100, 200)
		if err != nil || !bytes.Equal(got, p[100:300]) {
			t.Fatalf("%s: %v", step.name, err)
		}
		if asked.Load() != step.asked || stored.Load() != step.stored {
			t.Errorf("%s: asked registry %d, store %d times, want %d and %d", step.name, asked.Load(), stored.Load(), step.asked, step.stored)
		}
	}
}
