package swarm

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	c := newTLSCluster(t, 2)
	to := c.roster.live[1].Control
	probe := Probe{Addr: to, Node: c.roster.live[0].ID, TLS: c.nodes[0].cfg.TLS}
	for _, packet := range []int{0, 576, 1500} {
		probe.Packet = packet
		r, err := probe.Run(t.Context())
		if err != nil || !r.Connected || r.RoundTrip <= 0 || r.Packet < 576 {
			t.Errorf("packets of %d: %+v, %v", packet, r, err)
		}
	}
	probe.Packet = 0

	probe.Node = "somebody"
	if r, err := probe.Run(t.Context()); err == nil || !r.Connected || !strings.Contains(err.Error(), "403") {
		t.Errorf("in another's name: %+v, %v", r, err)
	}
	probe.TLS = nil
	if r, err := probe.Run(t.Context()); err == nil || !r.Connected {
		t.Errorf("without a certificate: %+v, %v", r, err)
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probe.Addr = mute.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r, err := probe.Run(ctx); !r.Connected || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %+v, %v", r, err)
	}
	mute.Close()
	if r, err := probe.Run(t.Context()); r.Connected || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %+v, %v", r, err)
	}
}
