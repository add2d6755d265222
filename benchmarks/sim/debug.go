package main

import (
	"fmt"
	"os"
)

var debug = os.Getenv("SIMDEBUG") != ""
var lastTick moment

func (w *world) dbg() {
	if !debug || w.now < lastTick+moment(0.05*w.bound(nil)*1e9) {
		return
	}
	dt := (w.now - lastTick).seconds()
	lastTick = w.now
	var rec, useful, up, asked, idleUp, queue int64
	minc, maxc := 1<<30, 0
	for _, n := range w.nodes {
		rec += n.link.received
		useful += n.bytes
		up += n.link.sent
		if !n.link.busy {
			idleUp++
		}
		for _, h := range n.conns {
			asked += h.peer.Owed()
			queue += int64(len(h.other.in.queue))
		}
		minc = min(minc, n.count)
		maxc = max(maxc, n.count)
	}
	N := float64(len(w.nodes))
	B := w.cfg.Rate
	fmt.Fprintf(os.Stderr, "t=%.2f recv %.2f up %.2f origin %.2f idleUp %d owed/node %.1f pieces, queue/node %.1f min %d max %d origin pieces %d\n",
		w.now.seconds()/w.bound(nil), float64(rec-dr)/N/B/dt, float64(up-du)/N/B/dt, float64(w.registry.link.sent-do)/B/dt, idleUp,
		float64(asked)/N/float64(w.geo.PieceLength), float64(queue)/N, minc, maxc, w.registry.link.sent/w.geo.PieceLength)
	dr, du, do = rec, up, w.registry.link.sent
}

var dr, du, do int64

func (w *world) dbgEnd() {
	if !debug {
		return
	}
	for i, n := range w.nodes {
		nn := 0
		for _, h := range n.conns {
			nn += len(h.other.self.conns)
		}
		fmt.Fprintf(os.Stderr, "N %s %d took %.3f done %.3f joined %.3f conns %d theirs %.1f\n", n.id, i, (n.done-n.joined).seconds()/w.bound(n), n.done.seconds()/w.bound(n), n.joined.seconds(), len(n.conns), float64(nn)/float64(len(n.conns)))
	}
}
