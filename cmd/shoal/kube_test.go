package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiServer answers for one DaemonSet, with one of the answers after the other
// and the last one from then on.
type apiServer struct {
	answers []answer

	mu      sync.Mutex
	deleted []string // the queries of the deletions
	asked   int
}

type answer struct {
	code int
	body string
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer hush":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path != "/apis/apps/v1/namespaces/ns/daemonsets/clean":
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodDelete:
		a.deleted = append(a.deleted, r.URL.RawQuery)
		fmt.Fprint(w, `{"kind":"Status"}`)
	default:
		now := a.answers[min(a.asked, len(a.answers)-1)]
		a.asked++
		w.WriteHeader(now.code)
		fmt.Fprint(w, now.body)
	}
}

func status(generation, observed, desired, updated, ready int) answer {
	return answer{http.StatusOK, fmt.Sprintf(`{"kind":"DaemonSet","metadata":{"generation":%d},"status":{"observedGeneration":%d,"desiredNumberScheduled":%d,"updatedNumberScheduled":%d,"numberReady":%d}}`,
		generation, observed, desired, updated, ready)}
}

// pod is what a pod knows of the API server: address and credentials.
func pod(t *testing.T, a *apiServer) *kubeAPI {
	t.Helper()
	srv := httptest.NewTLSServer(a)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for name, text := range map[string]string{"ca.crt": string(ca), "token": "hush\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	k, err := inCluster(u.Hostname(), u.Port(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestWaitDaemonset(t *testing.T) {
	for name, tt := range map[string]struct {
		answers []answer
		remove  bool
		want    string // in the error; none: success
	}{
		"ready":                {answers: []answer{status(1, 1, 3, 3, 3)}},
		"no nodes":             {answers: []answer{status(1, 1, 0, 0, 0)}},
		"deleted":              {answers: []answer{status(1, 1, 3, 3, 3)}, remove: true},
		"becomes ready":        {answers: []answer{status(1, 0, 0, 0, 0), status(1, 1, 3, 3, 2), status(1, 1, 3, 3, 3)}, remove: true},
		"the server restarts":  {answers: []answer{{503, "busy"}, {200, "{"}, status(1, 1, 1, 1, 1)}},
		"never looked at":      {answers: []answer{status(1, 0, 0, 0, 0)}, remove: true, want: "not looked at by its controller yet"},
		"one node missing":     {answers: []answer{status(1, 1, 3, 3, 2)}, remove: true, want: "ready on 2 of 3 nodes"},
		"an old pod is ready":  {answers: []answer{status(2, 2, 3, 2, 3)}, remove: true, want: "ready on 2 of 3 nodes"},
		"tells what to do":     {answers: []answer{status(1, 1, 3, 3, 2)}, want: "kubectl --namespace ns delete daemonset clean"},
		"not there":            {answers: []answer{{404, `{"message":"daemonsets.apps \"clean\" not found"}`}}, want: `404 Not Found: daemonsets.apps "clean" not found`},
		"not allowed":          {answers: []answer{{403, "<html>"}}, want: "403 Forbidden"},
		"the server stays out": {answers: []answer{{500, ""}}, want: "not found out yet"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := &apiServer{answers: tt.answers}
			var out bytes.Buffer
			timeout := time.Minute
			if tt.want != "" {
				timeout = 100 * time.Millisecond
			}
			err := pod(t, srv).waitDaemonset(t.Context(), &out, waitDaemonsetCmd{Name: "clean", Namespace: "ns", Timeout: timeout, Delete: tt.remove})
			deletions := 0
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				if tt.remove {
					deletions = 1
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if len(srv.deleted) != deletions {
				t.Errorf("%d deletions, want %d", len(srv.deleted), deletions)
			}
			for _, q := range srv.deleted {
				if q != "propagationPolicy=Background" {
					t.Errorf("deleted with %q: its pods stay", q)
				}
			}
		})
	}
}

// TestWaitDaemonsetStops: SIGTERM ends it.
func TestWaitDaemonsetStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	err := pod(t, &apiServer{answers: []answer{status(1, 1, 3, 3, 2)}}).waitDaemonset(ctx, &bytes.Buffer{}, waitDaemonsetCmd{Name: "clean", Namespace: "ns", Timeout: time.Hour})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestInCluster(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct{ host, port, dir, want string }{
		"not in a pod": {"", "", dir, "runs in a pod"},
		"no token":     {"10.0.0.1", "443", dir, "service account token"},
	} {
		if _, err := inCluster(tt.host, tt.port, tt.dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := inCluster("10.0.0.1", "443", dir); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Error(err)
	}
}
