package members

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// Ping finds out whether a member gossips at an address: it sends datagrams that only
// who has the cluster's key can read, until one is answered or ctx ends. Of c only
// Cluster, SecretKey and Insecure count. Who pings becomes no member, and leaves no
// trace at the other.
func Ping(ctx context.Context, c Config, to netip.AddrPort) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("ping %s: %w", to, err)
		}
	}()
	local, err := sourceFor(to)
	if err != nil {
		return err
	}
	t, err := listen(local, 0, c.Log)
	if err != nil {
		return err
	}
	t.advertise = netip.AddrPortFrom(local, t.port())
	lib, err := c.library("ping-"+rand.Text(), t)
	if err != nil {
		_ = t.Shutdown() // the error before says more
		return err
	}
	lib.RetransmitMult = 1
	list, err := memberlist.Create(lib)
	if err != nil {
		_ = t.Shutdown()
		return err
	}
	defer func() { _ = list.Shutdown() }() // closes the sockets; nobody knows of it
	// The library announces itself with the next datagram, whatever it is for. That
	// one is for itself.
	if _, err := list.Ping(lib.Name, net.UDPAddrFromAddrPort(t.advertise)); err != nil {
		return err
	}
	for {
		_, err := list.Ping("", net.UDPAddrFromAddrPort(to))
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no answer: %w", ctx.Err())
		}
	}
}

// sourceFor is the address of this node that another one sees. It sends nothing.
func sourceFor(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
