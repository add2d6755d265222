package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/swarm"
)

// read opens a range and reads all of it.
func read(ctx context.Context, b *Blob, off, n int64) ([]byte, error) {
	r, err := b.Open(ctx, off, n)
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(r)
	return p, errors.Join(err, r.Close())
}

func TestBlobRanges(t *testing.T) {
	p, d := content(1 << 20)
	var mu sync.Mutex
	var ranges []string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/a/b/blobs/"+d.String() || r.Header.Get("Accept-Encoding") != "identity" || r.UserAgent() != "shoal" {
			t.Errorf("request %s %v", r.URL, r.Header)
		}
		mu.Lock()
		ranges = append(ranges, r.Header.Get("Range"))
		mu.Unlock()
		serveBytes(w, r, p)
	})
	reg := prometheus.NewRegistry()
	c := newClient(t, Config{Registerer: reg}, host)
	b := c.Blob(Repository{host, "a/b"}, d, int64(len(p)))
	size := int64(len(p))
	for _, tt := range []struct {
		off, n int64
		want   string
	}{
		{0, size, ""}, {0, 1, "bytes=0-0"}, {1, size - 1, "bytes=1-1048575"}, {size - 1, 1, "bytes=1048575-1048575"}, {4096, 65536, "bytes=4096-69631"},
	} {
		got, err := read(t.Context(), b, tt.off, tt.n)
		if err != nil || !bytes.Equal(got, p[tt.off:tt.off+tt.n]) {
			t.Errorf("range %d+%d: %d bytes, %v", tt.off, tt.n, len(got), err)
		}
		if got := ranges[len(ranges)-1]; got != tt.want {
			t.Errorf("range %d+%d: header %q, want %q", tt.off, tt.n, got, tt.want)
		}
	}
	for _, bad := range [][2]int64{{-1, 1}, {0, 0}, {0, size + 1}, {size, 1}, {1, size}, {1, -1}, {1 << 62, 1 << 62}} {
		if r, err := b.Open(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("range %v opened", bad)
			r.Close()
		}
	}
	want := `# HELP shoal_origin_requests_total HTTP requests sent on behalf of an origin registry, redirects and token requests included, by class of status (2xx to 5xx, or error when there was no answer).
# TYPE shoal_origin_requests_total counter
shoal_origin_requests_total{code="2xx",registry="` + host + `"} 5
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "shoal_origin_requests_total"); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(c.met.bytes.WithLabelValues(host)); got != float64(size+1+size-1+1+65536) {
		t.Errorf("counted %v bytes", got)
	}
}

func TestBlobAnswersThatDoNotFit(t *testing.T) {
	p, d := content(1000)
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request)
		off, n int64
		want   error
	}{
		{"range ignored", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p) }, 10, 10, swarm.ErrNoRange},
		{"range ignored from 0", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p) }, 0, 10, swarm.ErrNoRange},
		{"range ignored to the end", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p) }, 10, 990, swarm.ErrNoRange},
		{"range ignored for the whole", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(p) }, 0, 1000, nil},
		{"whole as a range", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=0-")
			serveBytes(w, r, p)
		}, 0, 1000, nil},
		{"other range", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=11-20")
			serveBytes(w, r, p)
		}, 10, 10, ErrInvalid},
		{"range too long", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=10-")
			serveBytes(w, r, p)
		}, 10, 10, ErrInvalid},
		{"several ranges", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=10-12,14-16")
			serveBytes(w, r, p)
		}, 10, 10, ErrInvalid},
		{"another size", func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p[:900]) }, 10, 10, ErrInvalid},
		{"another size of the whole", func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p[:900]) }, 0, 1000, ErrInvalid},
		{"beyond its end", func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, p[:5]) }, 10, 10, ErrInvalid},
		{"length that contradicts the range", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 10-19/1000")
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p[10:15])
		}, 10, 10, ErrInvalid},
		{"no content range", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) }, 10, 10, ErrInvalid},
		{"compressed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(p)
		}, 0, 1000, ErrInvalid},
		{"not found", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, 10, 10, swarm.ErrNotFound},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 10, 10, ErrDenied},
		{"unavailable", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, 10, 10, swarm.ErrUnavailable},
		{"chunked, too short for good", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
		}, 0, 1000, swarm.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, tt.answer)
			c := newClient(t, Config{}, host)
			got, err := read(t.Context(), c.Blob(Repository{host, "a"}, d, 1000), tt.off, tt.n)
			if tt.want == nil && (err != nil || !bytes.Equal(got, p[tt.off:tt.off+tt.n])) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if tt.want == swarm.ErrNoRange && errors.Is(err, swarm.ErrUnavailable) {
				t.Error("no-range counts as unavailable")
			}
			if tt.want == swarm.ErrNoRange && !strings.Contains(err.Error(), swarm.ErrNoRange.Error()) {
				t.Errorf("no word of the cause in %q", err)
			}
		})
	}
}

// TestBlobFlaky reads through a server that fails in every way in turn: what
// comes out is right, or nothing.
func TestBlobFlaky(t *testing.T) {
	p, d := content(300_000)
	size := int64(len(p))
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		ignoresRange := rapid.Bool().Draw(rt, "ignores range")
		off := rapid.Int64Range(0, size-1).Draw(rt, "off")
		n := rapid.Int64Range(1, size-off).Draw(rt, "n")
		if ignoresRange {
			off, n = 0, size
		}
		var mu sync.Mutex
		rnd := rand.New(rand.NewPCG(seed, 0))
		bad := 0
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			what, cut := rnd.IntN(4), rnd.Int64N(100_000)
			if bad++; bad > 3 {
				bad, what = 0, 3 // never as many in a row as there are attempts
			}
			mu.Unlock()
			if ignoresRange {
				r.Header.Del("Range")
			}
			switch what {
			case 0:
				w.WriteHeader(http.StatusBadGateway)
			case 1: // refuses to answer
				panic(http.ErrAbortHandler)
			case 2: // breaks off
				serveBytes(&cutWriter{ResponseWriter: w, left: cut}, r, p)
			default:
				serveBytes(w, r, p)
			}
		})
		c := newClient(t, Config{Retry: Retry{Base: time.Microsecond, Attempts: 5}}, host)
		got, err := read(t.Context(), c.Blob(Repository{host, "a"}, d, size), off, n)
		if err != nil || !bytes.Equal(got, p[off:off+n]) {
			rt.Fatalf("%d of %d bytes, %v", len(got), n, err)
		}
	})
}

// cutWriter breaks the connection off after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int64
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= int64(len(p))
	return c.ResponseWriter.Write(p)
}

// TestBlobTrickle has a server that breaks off after little each time: this is
// no progress, and must end.
func TestBlobTrickle(t *testing.T) {
	p, d := content(1 << 20)
	var requests atomic.Int64
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		serveBytes(&cutWriter{ResponseWriter: w, left: 1000}, r, p)
	})
	c := newClient(t, Config{}, host)
	got, err := read(t.Context(), c.Blob(Repository{host, "a"}, d, 1<<20), 0, 1<<20)
	if !errors.Is(err, swarm.ErrUnavailable) || !bytes.Equal(got, p[:len(got)]) || requests.Load() != 4 {
		t.Errorf("%d bytes in %d requests, %v", len(got), requests.Load(), err)
	}
}

func TestBlobWaits(t *testing.T) {
	p, d := content(1000)
	for _, tt := range []struct {
		name    string
		answer  func(n int, w http.ResponseWriter, r *http.Request) // n counts from 1
		within  time.Duration                                       // of the caller's patience; 0: endless
		wantErr error
		want    time.Duration // that it takes
	}{
		{"429 with seconds", func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.Header().Set("Retry-After", "5")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			serveBytes(w, r, p)
		}, 0, nil, 5 * time.Second},
		{"503 with a date", func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.Header().Set("Retry-After", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			serveBytes(w, r, p)
		}, 0, nil, 3 * time.Second},
		{"429 with more than we wait", func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
		}, 0, ErrRateLimited, 0},
		{"429 with more than the caller waits", func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(http.StatusTooManyRequests)
		}, 4 * time.Second, ErrRateLimited, 0},
		{"500 for ever", func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
		}, 0, swarm.ErrUnavailable, (250 + 500 + 1000) * time.Millisecond},
		{"silence before the header", func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				<-r.Context().Done()
				return
			}
			serveBytes(w, r, p)
		}, 0, nil, 20*time.Second + 250*time.Millisecond},
		{"silence in the body", func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.Header().Set("Content-Length", "1000")
				_, _ = w.Write(p[:400])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			if got := r.Header.Get("Range"); got != "bytes=400-999" {
				t.Errorf("resumed with range %q", got)
			}
			serveBytes(w, r, p)
		}, 0, nil, 15*time.Second + 250*time.Millisecond},
		{"slow but steady", func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			for i := range 10 {
				_, _ = w.Write(p[i*100 : i*100+100])
				w.(http.Flusher).Flush()
				time.Sleep(14 * time.Second)
			}
		}, 0, nil, 9 * 14 * time.Second},
		{"caller gives up", func(_ int, _ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}, 4 * time.Second, context.DeadlineExceeded, 4 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n atomic.Int64
				tr := bubble(t, func(w http.ResponseWriter, r *http.Request) { tt.answer(int(n.Add(1)), w, r) })
				c, err := New(Config{Transport: tr, Insecure: []string{"r.test"}, Jitter: func() float64 { return 0 }})
				if err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				if tt.within > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.within)
					defer cancel()
				}
				start := time.Now()
				got, err := read(ctx, c.Blob(Repository{"r.test", "a"}, d, 1000), 0, 1000)
				if took := time.Since(start); took != tt.want {
					t.Errorf("took %v, want %v", took, tt.want)
				}
				if !errors.Is(err, tt.wantErr) || err == nil && !bytes.Equal(got, p) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				var e *Error
				if errors.Is(err, ErrRateLimited) && (!errors.As(err, &e) || e.RetryAfter == 0 || e.Status != 429) {
					t.Errorf("%#v", err)
				}
			})
		})
	}
}

// TestBlobSlowConsumer pauses for longer than the registry may: that is
// nobody's fault.
func TestBlobSlowConsumer(t *testing.T) {
	p, d := content(1000)
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		tr := bubble(t, func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			serveBytes(w, r, p)
		})
		c, err := New(Config{Transport: tr, Insecure: []string{"r.test"}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Blob(Repository{"r.test", "a"}, d, 1000).Open(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make([]byte, 1000)
		if _, err := io.ReadFull(r, got[:500]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := io.ReadFull(r, got[500:]); err != nil || !bytes.Equal(got, p) || n.Load() != 1 {
			t.Errorf("%d requests, %v", n.Load(), err)
		}
	})
}

func TestBlobClose(t *testing.T) {
	_, d := content(1000)
	hang := make(chan struct{})
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(hang)
	})
	c := newClient(t, Config{}, host)
	r, err := c.Blob(Repository{host, "a"}, d, 1000).Open(t.Context(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 10))
		done <- err
	}()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errClosed) || errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("read returns %v", err)
	}
	<-hang // the transfer has stopped
	if _, err := r.Read(make([]byte, 10)); !errors.Is(err, errClosed) && !errors.Is(err, context.Canceled) {
		t.Errorf("read after close returns %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestConnections bounds the streams, not the manifests, and reuses
// connections.
func TestConnections(t *testing.T) {
	p, d := content(1000)
	var conns atomic.Int64
	var seen sync.Map
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, known := seen.LoadOrStore(r.RemoteAddr, true); !known {
			conns.Add(1)
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			http.NotFound(w, r)
			return
		}
		serveBytes(w, r, p)
	})
	c := newClient(t, Config{Connections: 3}, host)
	repo := Repository{host, "a"}
	b := c.Blob(repo, d, 1000)

	var held []io.ReadCloser
	for range 3 {
		r, err := b.Open(t.Context(), 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := b.Open(ctx, 0, 10)
		failed <- err
	}()
	if _, err := c.Head(t.Context(), repo, "x"); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("manifest behind full streams: %v", err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("waiting stream: %v", err)
	}
	for _, r := range held {
		r.Close()
	}

	const streams = 60
	var wg sync.WaitGroup
	var open, most atomic.Int64
	for i := range streams {
		wg.Go(func() {
			r, err := b.Open(t.Context(), int64(i), 100)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			n := open.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			var got [100]byte
			_, err = io.ReadFull(r, got[:99])
			open.Add(-1) // the last byte gives the slot back
			if _, last := io.ReadFull(r, got[99:]); err != nil || last != nil || !bytes.Equal(got[:], p[i:i+100]) {
				t.Error(err, last)
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 {
		t.Errorf("%d streams at once", most.Load())
	}
	// How many exactly is a matter of timing: the next stream may start before
	// the last one's connection is back in the pool.
	if conns.Load() > streams/2 {
		t.Errorf("%d connections for %d streams", conns.Load(), streams)
	}
}
