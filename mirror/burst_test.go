package mirror

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestBurst follows a node through an image of two layers, another image soon
// after, and one an hour later.
func TestBurst(t *testing.T) {
	epoch := time.Unix(1_800_000_000, 0)
	at := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	var b burst
	if !b.beginning().IsZero() || !b.end(at(0)).IsZero() {
		t.Error("there is a burst before the first pull")
	}
	if unixSeconds(time.Time{}) != 0 || unixSeconds(at(0.25)) != 1_800_000_000.25 {
		t.Error("times are not in seconds since 1970")
	}
	pause := burstPause.Seconds()
	for _, step := range []struct {
		what         string
		at           float64
		do           func(time.Time)
		began, ended float64
	}{
		{"a layer begins", 0, b.start, 0, 0},
		{"so does another", 1, b.start, 0, 1},
		{"the first one ends", 100, b.stop, 0, 100},
		{"the other goes on", 200, func(time.Time) {}, 0, 200},
		{"and ends", 300, b.stop, 0, 300},
		{"nothing", 310, func(time.Time) {}, 0, 300},
		{"the next image", 300 + pause, b.start, 0, 300 + pause},
		{"ends", 400, b.stop, 0, 400},
		{"another rollout", 400 + pause + 1, b.start, 400 + pause + 1, 400 + pause + 1},
		{"ends, too", 4000, b.stop, 400 + pause + 1, 4000},
	} {
		step.do(at(step.at))
		if got := b.beginning(); !got.Equal(at(step.began)) {
			t.Errorf("%s: began at %v, want %v", step.what, got.Sub(epoch), step.began)
		}
		if got := b.end(at(step.at)); !got.Equal(at(step.ended)) {
			t.Errorf("%s: ended at %v, want %v", step.what, got.Sub(epoch), step.ended)
		}
	}
}

// TestBurstRequests: what asks without pulling, and what reads parts of layers, is no
// part of a rollout.
func TestBurstRequests(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "library/app", "v1", 10_000)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	began := func() float64 { return tm.counted(t, "shoal_mirror_burst_began_timestamp_seconds") }

	tm.do(t, http.MethodHead, img.manifestURL(reg, "v1"))
	tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]), "Range", "bytes=0-99")
	tm.do(t, http.MethodGet, "/v2/library/app/manifests/v1?ns=elsewhere.example")
	if n := began(); n != 0 {
		t.Errorf("a burst began at %v, without a pull", n)
	}
	before := unixSeconds(time.Now())
	tm.do(t, http.MethodGet, img.manifestURL(reg, img.desc.Digest.String()))
	eventually(t, "the pull is over", func() bool { return tm.counted(t, "shoal_mirror_requests_in_flight") == 0 })
	after := unixSeconds(time.Now())
	if n := began(); n < before || n > after {
		t.Errorf("the burst began at %v, not between %v and %v", n, before, after)
	}
	if n := tm.counted(t, "shoal_mirror_burst_ended_timestamp_seconds"); n < began() || n > after {
		t.Errorf("the burst ended at %v, not between %v and %v", n, began(), after)
	}
	for rg, want := range map[string]bool{"": true, "bytes=5-": true, "bytes=5-9": false, "bytes=-9": false} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Range", rg)
		if got := partOfBurst(r); got != want {
			t.Errorf("range %q: part of a burst: %v, want %v", rg, got, want)
		}
	}
}
