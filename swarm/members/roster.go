package members

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Member is a live node.
type Member struct {
	// ID is the node's stable name.
	ID string
	// Host is the node's IP address as text.
	Host string
	// Control and Wire are the host:port of its control plane and of its peer
	// wire.
	Control, Wire string
	// Zone is where the node is, empty when unknown.
	Zone string
	// Version is the node's [ProtocolVersion].
	Version int
	// Born is when the node's process started, by its own clock in Unix ms: a node
	// that restarts so fast that nobody misses it is another one to who told it
	// something.
	Born int64
}

func newMember(m meta, ip netip.Addr) Member {
	host := ip.String()
	return Member{
		ID:      m.id,
		Host:    host,
		Control: net.JoinHostPort(host, strconv.Itoa(int(m.control))),
		Wire:    net.JoinHostPort(host, strconv.Itoa(int(m.wire))),
		Zone:    m.zone,
		Version: int(m.protocol),
		Born:    m.born,
	}
}

// instance is one life of a node's process.
type instance struct {
	name   string // <id>/<random>
	born   int64  // Unix ms
	gossip netip.AddrPort
	member Member
}

// outranks reports whether i stands for the id that it shares with o. All
// nodes come to the same result; the clocks that set born belong to one node
// in two of its lives, or to two nodes that should not share an id.
func (i instance) outranks(o instance) bool {
	return cmp.Or(cmp.Compare(i.born, o.born), cmp.Compare(i.name, o.name)) > 0
}

// idOf is the id in an instance's name.
func idOf(name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)]
}

// roster is the set of live instances. Safe for concurrent use.
type roster struct {
	self string // this node's instance

	mu        sync.Mutex
	instances map[string]instance
	live      []Member // nil when it has to be made anew; never modified
	changed   chan struct{}
}

// newRoster begins with this node alone.
func newRoster(self instance) *roster {
	return &roster{
		self:      self.name,
		instances: map[string]instance{self.name: self},
		changed:   make(chan struct{}),
	}
}

func (r *roster) put(i instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.instances[i.name] == i {
		return
	}
	r.instances[i.name] = i
	r.touch()
}

// drop removes an instance. This node's own stays: it is alive to itself, also
// while it leaves.
func (r *roster) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.instances[name]; !ok || name == r.self {
		return
	}
	delete(r.instances, name)
	r.touch()
}

// touch is called with the lock held.
func (r *roster) touch() {
	r.live = nil // made when asked for: a thousand may join in a row
	close(r.changed)
	r.changed = make(chan struct{})
}

// members are the live ones, one per id, sorted by id.
func (r *roster) members() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live != nil {
		return r.live
	}
	of := make(map[string]instance, len(r.instances))
	for _, i := range r.instances {
		o, ok := of[i.member.ID]
		// A node never gives way to a namesake in its own eyes: what it does
		// with its own data does not depend on others.
		if !ok || i.name == r.self || o.name != r.self && i.outranks(o) {
			of[i.member.ID] = i
		}
	}
	live := make([]Member, 0, len(of))
	for _, i := range of {
		live = append(live, i.member)
	}
	slices.SortFunc(live, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	r.live = live
	return live
}

// own is this node's instance.
func (r *roster) own() instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.instances[r.self]
}

// alone reports whether no other instance is alive.
func (r *roster) alone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.instances) == 1
}

// contacts are the gossip addresses of all instances.
func (r *roster) contacts() map[netip.AddrPort]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[netip.AddrPort]bool, len(r.instances))
	for _, i := range r.instances {
		m[i.gossip] = true
	}
	return m
}

func (r *roster) wait() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}
