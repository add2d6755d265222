package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/peertls"
)

// packets are the sizes of IP packets that are tried where something is lost on the
// way, in bytes: what kinds of networks leave, from the least that IPv4 must carry
// over IPv6's minimum, IPsec, WireGuard, VXLAN, clouds, IP in IP and PPPoE to
// Ethernet's and jumbo frames.
var packets = []int{576, 1280, 1360, 1400, 1420, 1440, 1450, 1460, 1480, 1492, 1500, 8951, 9001}

// packetTimeout bounds a try with small packets, which have nothing to wait for but a
// lost one or two.
const packetTimeout = 3 * time.Second

// state is how far another node can be reached, the best first.
type state int

const (
	fine state = iota
	// deaf: it does not answer to gossip, which goes by datagrams.
	deaf
	// narrow: packets above a size are lost.
	narrow
	// refuses: it answers, and does not take this node for one of the cluster.
	refuses
	// down: its machine answers that nothing listens.
	down
	// unreachable: nothing comes back, of some port at least.
	unreachable
)

// peer is another node as it was found.
type peer struct {
	state    state
	evidence []string
}

// reach tries the ports of other nodes, and what goes over them.
func reach(ctx context.Context, e *Env, creds *peertls.Credentials, addresses []string) []peer {
	peers := make([]peer, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() { peers[i] = reachOne(ctx, e, creds, a) })
	}
	wg.Wait()
	return peers
}

func reachOne(ctx context.Context, e *Env, creds *peertls.Credentials, address string) peer {
	var p peer
	probe := swarm.Probe{Addr: net.JoinHostPort(address, e.ControlPort), Node: e.Node}
	if creds != nil {
		probe.TLS = creds.ClientConfig("http/1.1")
		if creds.ID() != peertls.AnyNode {
			probe.Node = creds.ID()
		}
	}
	// The other two are asked nothing: that is for the cluster's own programs.
	others := []string{e.WirePort, e.GossipPort}
	errs := make([]error, len(others))
	var wg sync.WaitGroup
	for i, port := range others {
		wg.Go(func() { errs[i] = dial(ctx, net.JoinHostPort(address, port)) })
	}
	usable := e.CertsDir == "" || creds != nil
	if usable {
		if result, err := try(ctx, probe, farTimeout); err != nil {
			p.state, p.evidence = diagnose(ctx, probe, result, err)
		}
	}
	wg.Wait()
	for _, err := range errs {
		refused := errors.Is(err, syscall.ECONNREFUSED)
		if err != nil {
			p.evidence = append(p.evidence, err.Error())
		}
		// Down is what refuses on all ports.
		if err != nil && !(p.state == down && refused) || err == nil && p.state == down {
			p.state = unreachable
		}
	}
	if p.state == fine && usable {
		if err := pingGossip(ctx, e, creds, address); err != nil {
			p.state, p.evidence = deaf, []string{err.Error()}
		}
	}
	return p
}

// pingGossip asks another node by a datagram in the cluster's key.
func pingGossip(ctx context.Context, e *Env, creds *peertls.Credentials, address string) error {
	to, err := netip.ParseAddrPort(net.JoinHostPort(address, e.GossipPort))
	if err != nil {
		return err
	}
	c := members.Config{Cluster: e.Cluster, Insecure: creds == nil, Log: zerolog.Nop()}
	if creds != nil {
		c.SecretKey = creds.GossipKey()
	}
	ctx, cancel := context.WithTimeout(ctx, farTimeout)
	defer cancel()
	return members.Ping(ctx, c, to)
}

// diagnose says what it means that a probe has failed.
func diagnose(ctx context.Context, probe swarm.Probe, result swarm.ProbeResult, err error) (state, []string) {
	switch {
	case !result.Connected && errors.Is(err, syscall.ECONNREFUSED):
		return down, []string{err.Error()}
	case !result.Connected:
		return unreachable, []string{err.Error()}
	case !timedOut(err):
		return refuses, []string{err.Error()}
	}
	// It lets itself be connected, and then nothing comes: of full packets, perhaps.
	through := largest(ctx, probe)
	if through == 0 {
		return unreachable, []string{fmt.Sprintf("%s takes connections, and then nothing comes: %v", probe.Addr, err)}
	}
	return narrow, []string{fmt.Sprintf("%s: packets of up to %d bytes come through; of %d bytes, as the route allows, nothing does", probe.Addr, through, result.Packet)}
}

// largest of the packets that come through, 0 if none does.
func largest(ctx context.Context, probe swarm.Probe) int {
	errs := make([]error, len(packets))
	var wg sync.WaitGroup
	for i, size := range packets {
		wg.Go(func() {
			probe := probe
			probe.Packet = size
			_, errs[i] = try(ctx, probe, packetTimeout)
		})
	}
	wg.Wait()
	// One that is lost ends the row: larger ones may come through by chance.
	n := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	switch n {
	case 0:
		return 0
	case -1:
		n = len(packets)
	}
	return packets[n-1]
}

func try(ctx context.Context, probe swarm.Probe, patience time.Duration) (swarm.ProbeResult, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return probe.Run(ctx)
}

func dial(ctx context.Context, at string) error {
	conn, err := (&net.Dialer{Timeout: farTimeout}).DialContext(ctx, "tcp", at)
	if err == nil {
		_ = conn.Close() // nothing was said
	}
	return err
}

// timedOut tells silence from an answer that displeases.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// judgePeers says what is wrong between this node and others. As long as some can
// be reached it is a warning.
func judgePeers(e *Env, peers []peer) []Finding {
	var by [unreachable + 1][]string
	var count [unreachable + 1]int
	for _, p := range peers {
		by[p.state] = append(by[p.state], p.evidence...)
		count[p.state]++
	}
	severity := Error
	if count[fine] > 0 {
		severity = Warning
	}
	const alone = "this node and those do not trade: each fetches a copy of its own"
	var all []Finding
	for _, f := range []struct {
		state state
		Finding
	}{
		{unreachable, Finding{
			ID: "peer-unreachable", Title: "%d of %d other nodes cannot be reached", Consequence: alone,
			Fix: fmt.Sprintf("if the machines run: open TCP %s, %s and %s and UDP %s between nodes (network policies, security groups, firewalls)",
				e.ControlPort, e.WirePort, e.GossipPort, e.GossipPort),
		}},
		{narrow, Finding{
			ID: "peer-mtu", Title: "large packets are lost on the way to %d of %d other nodes", Consequence: "connections stand still as soon as much is to be sent: " + alone,
			Fix: "set the MTU of this network (the CNI's, or that of the nodes' interfaces) to what comes through, on all nodes; or let ICMP \"fragmentation needed\" pass in firewalls, by which nodes find it out themselves. Until then, as a stopgap on the nodes: sysctl -w net.ipv4.tcp_mtu_probing=1",
		}},
		{down, Finding{
			ID: "peer-down", Title: "Shoal does not run on %d of %d other nodes", Consequence: alone,
			Fix: "their machines answer: see there why 'shoal serve' does not run, or whether its ports are others; or take them out of --join",
		}},
		{deaf, Finding{
			ID: "gossip-silent", Title: "%d of %d other nodes do not answer to gossip", Consequence: "this node and those take each other for gone, sooner or later: " + alone,
			Fix: "open UDP " + e.GossipPort + " between nodes, in both directions; if it is: have all nodes the same --cluster and gossip.key?",
		}},
		{refuses, Finding{
			ID: "peer-refuses", Title: "%d of %d other nodes and this one do not accept each other", Consequence: "they are strangers: nothing is shared with them",
			Fix: "compare cluster id, authority (ca.crt) and clock of both",
		}},
	} {
		if n := count[f.state]; n > 0 {
			f.Severity, f.Evidence = severity, by[f.state]
			f.Title = fmt.Sprintf(f.Title, n, len(peers))
			slices.Sort(f.Evidence)
			all = append(all, f.Finding)
		}
	}
	return all
}
