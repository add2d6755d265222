package swarm

import (
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestClocks(t *testing.T) {
	c := clocks{gauge: prometheus.NewGauge(prometheus.GaugeOpts{Name: "skew"})}
	start := time.Date(2026, 1, 2, 3, 4, 5, 700e6, time.UTC)
	for _, step := range []struct {
		name  string
		after time.Duration
		date  string // empty: that of the skew
		skew  time.Duration
		want  float64
	}{
		{"in time", 0, "", 0, 0},
		{"dated in the second before", 300 * time.Millisecond, "", -50 * time.Millisecond, 0},
		{"ahead", time.Second, "", 5 * time.Second, 4.3},
		{"a lesser one does not hide it", 2 * time.Second, "", -time.Second, 4.3},
		{"behind, and worse", 3 * time.Second, "", -40 * time.Second, -39.7},
		{"no date", 4 * time.Second, "yesterday", 0, -39.7},
		{"still remembered", 9 * time.Minute, "", 0, -39.7},
		{"forgotten", 14 * time.Minute, "", time.Second, 0.3},
	} {
		now := start.Add(step.after)
		date := step.date
		if date == "" {
			date = now.Add(step.skew).Format(http.TimeFormat)
		}
		c.compare(date, now)
		if got := testutil.ToFloat64(c.gauge); got != step.want {
			t.Errorf("%s: %v s, want %v", step.name, got, step.want)
		}
	}
}
