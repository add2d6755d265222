package mirror

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm"
)

// slowUpstream answers HEAD requests when it likes to.
type slowUpstream struct {
	yes
	delay atomic.Int64 // ns
	asked atomic.Int32
}

func (u *slowUpstream) Head(ctx context.Context, r Repository, ref string) (swarm.Descriptor, error) {
	u.asked.Add(1)
	select {
	case <-time.After(time.Duration(u.delay.Load())):
		return u.yes.Head(ctx, r, ref)
	case <-ctx.Done():
		return swarm.Descriptor{}, ctx.Err()
	}
}

func (u *slowUpstream) Size(ctx context.Context, r Repository, d digest.Digest) (int64, error) {
	x, err := u.Head(ctx, r, d.String())
	return x.Size, err
}

func bubbleMirror(t *testing.T, s Swarm, up Upstream) *Mirror {
	m, err := New(Config{Swarm: s, Upstream: sole{up}, Registries: []string{"docker.io"}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// serve answers a request without a network, so that time may stand still.
func serve(t *testing.T, m *Mirror, method, target string, header ...string) (*httptest.ResponseRecorder, time.Duration) {
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	began := time.Now()
	m.Handler().ServeHTTP(w, r)
	return w, time.Since(began)
}

// TestSilentRegistry follows a registry through an outage, on the clock.
func TestSilentRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &slowUpstream{}
		m := bubbleMirror(t, &scripted{}, up)
		defer m.Close()
		head := func(tag string) (int, time.Duration) {
			w, took := serve(t, m, http.MethodHead, "/v2/a/manifests/"+tag+"?ns=docker.io")
			return w.Code, took
		}
		step := func(what string, wantCode int, wantTook time.Duration, tag string) {
			t.Helper()
			if code, took := head(tag); code != wantCode || took != wantTook {
				t.Errorf("%s: %d after %s, want %d after %s", what, code, took, wantCode, wantTook)
			}
		}
		up.delay.Store(int64(time.Second))
		step("healthy", 200, time.Second, "one")
		up.delay.Store(int64(time.Hour))
		m.grants.set(grantKey{repo: Repository{Registry: "docker.io", Name: "a"}}, nil, time.Now().Add(-m.cfg.GrantTTL))
		step("hanging", 404, m.cfg.CheckTimeout, "two")
		asked := up.asked.Load()
		for i := range 20 {
			step("known to hang", 404, 0, fmt.Sprint("three", i))
		}
		if n := up.asked.Load(); n != asked {
			t.Errorf("asked %d times while down", n-asked)
		}
		time.Sleep(downFor)
		step("probing, still down", 404, 0, "four")
		step("probing, still down", 404, 0, "five")
		synctest.Wait() // the probe is a goroutine of its own
		if n := up.asked.Load(); n != asked+1 {
			t.Errorf("%d probes, want 1", n-asked)
		}
		up.delay.Store(int64(10 * time.Millisecond))
		time.Sleep(questionLife) // also for the probe to give up
		time.Sleep(downFor)
		step("back, but not known yet", 404, 0, "six")
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		step("back", 200, 10*time.Millisecond, "seven")
	})
}

// TestLateAnswerCounts: a registry that is slower than CheckTimeout is not
// lost for good.
func TestLateAnswerCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &slowUpstream{}
		up.delay.Store(int64(4 * time.Second))
		m := bubbleMirror(t, &scripted{}, up)
		defer m.Close()
		target := "/v2/a/manifests/x?ns=docker.io"
		if w, took := serve(t, m, http.MethodHead, target); w.Code != 404 || took != m.cfg.CheckTimeout {
			t.Errorf("%d after %s", w.Code, took)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got, _ := m.grants.standing(grantKey{repo: Repository{Registry: "docker.io", Name: "a"}}, time.Now()); got != granted {
			t.Errorf("standing after the late answer: %d", got)
		}
	})
}

// TestQuestionsAreCoalescedAndBounded counts what goes upstream.
func TestQuestionsAreCoalescedAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &slowUpstream{}
		up.delay.Store(int64(time.Second))
		o := newOracle(time.Minute, func(question, swarm.Descriptor, error) {})
		ask := func(tag string) {
			go func() {
				_, _ = o.ask(t.Context(), question{Repository{Registry: "docker.io", Name: "a"}, kindManifest, reference{tag: tag}, caller{up: up}})
			}()
		}
		for range 100 {
			ask("same")
		}
		synctest.Wait()
		if n := up.asked.Load(); n != 1 {
			t.Errorf("one question was asked %d times", n)
		}
		for i := range 10 * maxQuestions {
			ask(fmt.Sprint(i))
		}
		synctest.Wait()
		if n := up.asked.Load(); n != maxQuestions {
			t.Errorf("%d questions open, bound is %d", n, maxQuestions)
		}
		o.close()
		if _, err := o.ask(t.Context(), question{ref: reference{tag: "x"}}); err == nil {
			t.Error("a closed oracle answers")
		}
	})
}

// TestProgressElsewhereIsNoStall: pieces come in any order, so the client may
// wait long while the download is busy. Only when that stops is it stuck.
func TestProgressElsewhereIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		const busy = 4 * time.Minute
		d := &download{read: after(10, never), stats: func() swarm.Stats {
			return swarm.Stats{Peers: int64(min(time.Since(began), busy) / time.Second)}
		}}
		m := bubbleMirror(t, serving(d), yes{1 << 20})
		defer m.Close()
		w, took := serve(t, m, http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns=docker.io")
		if w.Code != http.StatusOK || w.Body.Len() != 10 {
			t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
		}
		if took < busy+m.cfg.StallTimeout || took > busy+m.cfg.StallTimeout*5/4 {
			t.Errorf("cut after %s, the last progress was at %s", took, busy)
		}
	})
}

// recorder tells at any time whether the header is out.
type recorder struct {
	*httptest.ResponseRecorder
	flushed atomic.Bool
}

func (r *recorder) Flush() {
	r.flushed.Store(true)
	r.ResponseRecorder.Flush()
}

// TestFirstByte: the header goes out in time for containerd, the body later.
func TestFirstByte(t *testing.T) {
	for _, hold := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			until := func(ctx context.Context) error {
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			d := &download{wait: until, read: func(ctx context.Context, p []byte) (int, error) {
				return len(p), until(ctx)
			}}
			m := bubbleMirror(t, serving(d), yes{1000})
			defer m.Close()
			m.cfg.Hold = hold
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns=docker.io", nil)
			w := &recorder{ResponseRecorder: httptest.NewRecorder()}
			done := make(chan struct{})
			go func() {
				defer close(done)
				m.Handler().ServeHTTP(w, r)
			}()
			time.Sleep(m.cfg.FirstByteTimeout - 1)
			synctest.Wait()
			if w.flushed.Load() {
				t.Errorf("hold %t: header sent early", hold)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if !w.flushed.Load() {
				t.Errorf("hold %t: no header after %s", hold, m.cfg.FirstByteTimeout)
			}
			close(release)
			<-done
			if w.Code != http.StatusOK || w.Body.Len() != 1000 {
				t.Errorf("hold %t: %d, %d bytes", hold, w.Code, w.Body.Len())
			}
		})
	}
}

// TestCooldownEnds: a blob that failed is tried again.
func TestCooldownEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bubbleMirror(t, serving(&download{read: after(10, fails(swarm.ErrUnavailable))}), yes{1000})
		defer m.Close()
		get := func() int {
			w, _ := serve(t, m, http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns=docker.io")
			return w.Code
		}
		if code := get(); code != http.StatusOK {
			t.Fatalf("first: %d", code)
		}
		time.Sleep(cooldownFor - 1)
		if code := get(); code != http.StatusNotFound {
			t.Errorf("within the pause: %d", code)
		}
		time.Sleep(time.Nanosecond)
		m.cfg.Swarm = serving(&download{read: after(1000, never)})
		if code := get(); code != http.StatusOK {
			t.Errorf("after it: %d", code)
		}
	})
}
