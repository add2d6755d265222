package swarm

import (
	"testing"
	"time"
)

func TestImpatient(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	tests := map[string]struct {
		v    vitals
		want string
	}{
		"bytes arrive":                        {vitals{lastByte: ago(1), lastSwarm: ago(60), tracked: true}, ""},
		"own lease works, or will be revoked": {vitals{lastByte: ago(60), lastSwarm: ago(60), tracked: true, leases: 1}, ""},
		"others bring in what is missing":     {vitals{lastByte: ago(60), lastSwarm: ago(1), tracked: true}, ""},
		"peers have it and do not send":       {vitals{lastByte: ago(6), lastSwarm: ago(1), tracked: true, obtainable: true}, helpPeers},
		"nothing moves anywhere":              {vitals{lastByte: ago(6), lastSwarm: ago(6), tracked: true}, helpStalled},
		"no tracker for a moment":             {vitals{lastByte: ago(6), lastSwarm: ago(6), trackedSince: ago(1)}, ""},
		"no tracker for long":                 {vitals{lastByte: ago(6), lastSwarm: ago(6), trackedSince: ago(5)}, helpTracker},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := impatient(tt.v, 5*time.Second, now)
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("impatient: %q %v, want %q", got, ok, tt.want)
			}
		})
	}
}
