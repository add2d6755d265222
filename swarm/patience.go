package swarm

import "time"

// vitals is what a download knows of its own progress and the swarm's.
type vitals struct {
	// lastByte is when the last useful byte arrived here, from anywhere.
	lastByte time.Time
	// lastSwarm is when the tracker last reported that leases brought bytes
	// into the swarm.
	lastSwarm time.Time
	// tracked says that a tracker session is open; since tells since when it
	// is, or is not.
	tracked      bool
	trackedSince time.Time
	// obtainable says that a piece missing here is known to be at a peer.
	obtainable bool
	// leases is how many leases this node works on.
	leases int
}

// Reasons for which a download helps itself, as metrics and logs name them.
const (
	helpTracker = "no_tracker" // no tracker session
	helpPeers   = "no_peers"   // peers have what is missing, but do not send it
	helpStalled = "stalled"    // nothing comes into the swarm at all
	helpStarved = "starved"    // the tracker knows no source
)

// impatient decides whether a download should fetch its next pieces from the
// origin by itself, and why. Waiting is right as long as the swarm moves and
// nothing that could be here is missing: with a slow registry and many
// pullers, a node may wait long for its turn, and helping itself would be the
// stampede that leases prevent.
func impatient(v vitals, patience time.Duration, now time.Time) (reason string, ok bool) {
	quiet := now.Sub(v.lastByte)
	switch {
	case quiet < patience, v.leases > 0:
		return "", false
	case !v.tracked && now.Sub(v.trackedSince) >= patience:
		return helpTracker, true
	case !v.tracked:
		return "", false
	case v.obtainable:
		return helpPeers, true
	case now.Sub(v.lastSwarm) >= patience:
		return helpStalled, true
	}
	return "", false
}
