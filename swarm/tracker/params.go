package tracker

import "time"

// Params tune the decisions. The zero value of a field means its default.
type Params struct {
	// LeaseTimeout is how long a lease may go without a byte before another
	// puller gets it. Default 5 s: longer than a TCP retransmission series on
	// a bad link, shorter than the patience of any client. When nothing is
	// left to lease and everyone waits, a fifth of it is enough at first.
	LeaseTimeout time.Duration
	// LeaseTime is how long one lease should last at the speed its puller
	// has shown; it sets the lease's length. Default 1 s. Short ones keep the
	// readable beginning of the blob close to the total: 16 simulated nodes
	// at 200 Mbit/s were behind by 1.6 % of 256 MiB on average with 0.5 s,
	// 3.6 % with 1 s and 4.9 % with 1.5 s. Long ones make up for a registry
	// that answers slowly: 8 nodes at 1 Gbit/s took 1.27, 1.19 and 1.14 of
	// the bound for 512 MiB when it answered after 150 ms, and 1.02 with any
	// when it did after 20 ms.
	LeaseTime time.Duration
	// LeaseMin and LeaseMax bound a lease in bytes. Defaults 256 KiB and 64
	// MiB. What one puller has a lease on comes one piece after the other and
	// has to be got from it by all, so a small blob should be spread over
	// many: 8 simulated nodes took 1.81 of the bound for 16 MiB with a
	// minimum of 1 MiB, and 1.32 so; 64 nodes 2.81 and 1.82. The most is what
	// LeaseTime comes to at 0.5 Gbit/s per stream; a lease that breaks off
	// later leaves more to be fetched again by others.
	LeaseMin, LeaseMax int64
	// OriginStreams caps the leases on the origin at one time, over all
	// pullers. Default 32: registries throttle by connections, and 32
	// streams fill any uplink that throttling leaves.
	OriginStreams int
	// HolderStreams caps the leases on one holder at one time. Default 16.
	HolderStreams int
	// LaterStreams caps the leases at one time of those pullers that have a layer
	// before this one to fetch. Default 1: enough for the blob to move, so that
	// nobody who waits for it gives up, and too little to hold up the other.
	LaterStreams int
	// SmallStreams caps the transfers of one small blob from one holder at
	// one time. Default 8; each that finishes becomes a holder too.
	SmallStreams int
	// MaxPeers is how many other pullers one is introduced to at least, if
	// there are so many; some are introduced to a few more. Default 14: the
	// last of 500 simulated nodes took 1.130 of the bound with 10, 1.126 with
	// 12, 1.132 with 14, 1.144 with 16 and 1.155 with 20 at 200 Mbit/s; of 200
	// nodes at 1 Gbit/s 1.116, 1.094, 1.079, 1.075 and 1.081. More peers mean
	// more requests that wait for each other, fewer a longer way for every
	// piece. Half of them are introduced when one joins; Tick adds the rest,
	// so that early ones get peers of their own age, too.
	MaxPeers int
	// Bar is how long a source stays barred for a puller that failed on it,
	// doubling with each further failure up to eight times. Default 5 s.
	Bar time.Duration
	// Grace is how long the pieces of a puller that became complete still
	// count as traded in the swarm, so that transfers in flight are not
	// leased a second time. Default 2 s.
	Grace time.Duration
}

func (p Params) withDefaults() Params {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	defInt := func(i *int, v int) {
		if *i <= 0 {
			*i = v
		}
	}
	def(&p.LeaseTimeout, 5*time.Second)
	def(&p.LeaseTime, time.Second)
	def(&p.Bar, 5*time.Second)
	def(&p.Grace, 2*time.Second)
	defInt(&p.OriginStreams, 32)
	defInt(&p.HolderStreams, 16)
	defInt(&p.LaterStreams, 1)
	defInt(&p.SmallStreams, 8)
	defInt(&p.MaxPeers, 14)
	if p.LeaseMin <= 0 {
		p.LeaseMin = 256 << 10
	}
	if p.LeaseMax < p.LeaseMin {
		p.LeaseMax = max(64<<20, p.LeaseMin)
	}
	return p
}

// streamsPerPuller is how many leases one of n pullers works on at a time. A
// lone node opens several streams, and so beats the single one that containerd
// uses. Many pullers fill a source's link with one each, and two would share it
// more unevenly: a stream that loses packets at a bad moment stands still for
// seconds with a piece that the beginning of the blob is waiting for, and what
// is sent again counts as traffic, too. 8 containerd nodes pulling 512 MiB at
// 100 Mbit/s: 1.038 copies with two, 1.022 to 1.029 with one.
func streamsPerPuller(n int) int {
	switch {
	case n <= 1:
		return 6
	case n == 2:
		return 4
	case n <= 4:
		return 3
	default:
		return 1
	}
}

// leaseFirst is how long a puller's first lease is, in bytes, but not more than a
// 64th of what is left, since others are about to join: nothing is known of its
// speed, and from a short one a source that answers slowly looks like a slow
// source. 8 simulated nodes at 1 Gbit/s whose
// registry answers after 150 ms took 1.18 of the bound for 512 MiB with 256 KiB,
// 1.15 with 1 MiB and 1.11 with 4 MiB; 100 nodes at 200 Mbit/s whose registry
// answers after 20 ms took 1.068, 1.069 and 1.082 for 256 MiB.
const leaseFirst = 1 << 20

// leaseLength is the length of the next lease in bytes: LeaseTime at the shown
// rate (bytes/s of one stream; 0 = not known yet), but not more than half a fair
// share of what is left to hand out, so that all pullers finish together, and
// not less than a quarter of LeaseTime for that: the last leases would become so
// short that a source does little but answer. With answers after 80 ms the last
// of 4 simulated nodes at 1 Gbit/s took 1.15 of the bound without that quarter,
// and 1.09 with it.
func (p Params) leaseLength(rate float64, left int64, streams int) int64 {
	n := int64(rate * p.LeaseTime.Seconds())
	if rate == 0 {
		n = min(leaseFirst, left/64)
	}
	fair := max(left/int64(2*max(streams, 1)), n/4)
	n = min(max(n, p.LeaseMin), p.LeaseMax)
	return max(min(n, fair), 1)
}

// barFor is how long a source is barred after its nth failure in a row.
func (p Params) barFor(n int) time.Duration {
	return p.Bar << min(max(n-1, 0), 3)
}

// PaceDown is the least time between two messages of the tracker to one of n
// pullers that are not urgent: so that it sends 4,000 in a second at most. A
// thousand simulated pullers took 1.127 of the bound with every sum sent at
// once, 96,000 messages in a second, and 1.139 at a pace of 250 ms.
func PaceDown(n int) time.Duration { return min(time.Duration(n)*250*time.Microsecond, time.Second) }

// PaceUp is the least time between two messages of one of n pullers to the
// tracker that are not urgent. They only say what came through the swarm, and
// made no difference at all when they waited for a second.
func PaceUp(n int) time.Duration {
	return min(max(time.Duration(n)*time.Millisecond, 100*time.Millisecond), time.Second)
}
