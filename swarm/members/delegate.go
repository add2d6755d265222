package members

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// delegate is what the library calls, often with its locks held: nothing here
// may block or call back into it.
type delegate struct{ m *Members }

var (
	_ memberlist.Delegate      = delegate{}
	_ memberlist.EventDelegate = delegate{}
	_ memberlist.AliveDelegate = delegate{}
)

// NodeMeta is this node's metadata.
func (d delegate) NodeMeta(int) []byte {
	return d.m.meta.Load().encode()
}

// NotifyAlive decides on each word about a node, before the library believes
// it. An error keeps the node from becoming a member.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if _, err := admit(n); err != nil {
		d.m.metrics.rejected.Inc()
		return err
	}
	return nil
}

// NotifyJoin adds a member.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.take(n, "join") }

// NotifyUpdate changes a member.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.take(n, "update") }

// NotifyLeave removes a member that left or died.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	if n.Name == d.m.roster.self {
		return
	}
	d.m.roster.drop(n.Name)
	d.m.metrics.changes.WithLabelValues("leave").Inc()
	d.m.log.Debug().Str("member", n.Name).Stringer("addr", n.Addr).Msg("member gone")
}

func (d delegate) take(n *memberlist.Node, event string) {
	i, err := admit(n) // the library has asked NotifyAlive before
	if err != nil {
		d.m.roster.drop(n.Name)
		return
	}
	d.m.roster.put(i)
	if i.name == d.m.roster.self {
		return
	}
	d.m.metrics.changes.WithLabelValues(event).Inc()
	d.m.log.Debug().Str("member", n.Name).Stringer("addr", i.gossip).Str("zone", i.member.Zone).Msg("member " + event)
	if own := d.m.roster.own(); i.member.ID == own.member.ID && i.outranks(own) {
		d.m.log.Error().Str("node", i.member.ID).Stringer("addr", i.gossip).
			Msg("another node with this node's id has started; ids must be unique, and the others now talk to that one")
	}
}

// admit makes an instance of what the network says about a node.
func admit(n *memberlist.Node) (instance, error) {
	m, err := parseMeta(n.Meta)
	if err != nil {
		return instance{}, err
	}
	if idOf(n.Name) != m.id {
		return instance{}, fmt.Errorf("metadata is for %q", m.id)
	}
	if len(n.Name) > maxID+1+2*suffixLength {
		return instance{}, errors.New("name is too long")
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	ip = ip.Unmap()
	if !ok || !reachable(ip) || n.Port == 0 {
		return instance{}, fmt.Errorf("%s port %d is no address of a node", n.Addr, n.Port)
	}
	return instance{
		name:   n.Name,
		born:   m.born,
		gossip: netip.AddrPortFrom(ip, n.Port),
		member: newMember(m, ip),
	}, nil
}

// NotifyMsg is not used: the control plane carries everything else.
func (delegate) NotifyMsg([]byte) {}

// GetBroadcasts is not used.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is not used.
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState is not used.
func (delegate) MergeRemoteState([]byte, bool) {}
