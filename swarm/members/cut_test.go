package members

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// cut is a network failure between two groups of nodes.
type cut struct {
	mu   sync.Mutex
	a, b []string
}

func newCut() *cut { return &cut{} }

func (c *cut) between(a, b []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.a, c.b = slices.Clone(a), slices.Clone(b)
}

func (c *cut) heal() { c.between(nil, nil) }

func (c *cut) severed(from, to string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.a, from) && slices.Contains(c.b, to) ||
		slices.Contains(c.b, from) && slices.Contains(c.a, to)
}

func (c *cut) wrap(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
	return &cutTransport{NodeAwareTransport: t, cut: c}
}

type cutTransport struct {
	memberlist.NodeAwareTransport
	cut *cut
}

func (t *cutTransport) severed(to string) bool {
	a := t.NodeAwareTransport.(*transport).advertise
	return t.cut.severed(a.String(), to)
}

// WriteToAddress loses what would have to cross the cut, as a network does.
func (t *cutTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if t.severed(a.Addr) {
		return time.Now(), nil
	}
	return t.NodeAwareTransport.WriteToAddress(b, a)
}

func (t *cutTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	if t.severed(a.Addr) {
		return nil, errors.New("network is cut")
	}
	return t.NodeAwareTransport.DialAddressTimeout(a, d)
}
