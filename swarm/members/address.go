package members

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// lookupTimeout bounds one DNS lookup.
const lookupTimeout = 5 * time.Second

// seed is one entry of Config.Join.
type seed struct {
	host string
	port uint16
}

// parseSeeds checks the list; port is the default.
func parseSeeds(list []string, port uint16) ([]seed, error) {
	var seeds []seed
	for _, s := range list {
		host, p, err := splitHostPort(strings.TrimPrefix(s, "dns+"), port)
		if err != nil {
			return nil, fmt.Errorf("seed %q: %w", s, err)
		}
		if p == 0 {
			return nil, fmt.Errorf("seed %q has no port", s)
		}
		seeds = append(seeds, seed{host, p})
	}
	return seeds, nil
}

// splitHostPort splits host, host:port, [v6]:port, [v6] or a bare v6. The host
// is never empty.
func splitHostPort(s string, port uint16) (string, uint16, error) {
	host := s
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if ip.Zone() != "" {
			return "", 0, errors.New("addresses with an interface cannot be reached from other nodes")
		}
		return ip.String(), port, nil
	}
	if strings.Contains(s, ":") {
		h, p, err := net.SplitHostPort(s)
		if err != nil {
			return "", 0, err
		}
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("port %q is out of range", p)
		}
		host, port = h, uint16(n)
	}
	if host == "" || strings.ContainsAny(host, " /[]%") {
		return "", 0, errors.New("host is missing or malformed")
	}
	return host, port, nil
}

// resolve finds the addresses of a host, which may be an address itself.
func resolve(ctx context.Context, r Resolver, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for i, ip := range ips {
		ips[i] = ip.Unmap()
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("lookup %s: no addresses", host)
	}
	return ips, nil
}

// parseBind reads Config.BindAddr. The address is invalid for "all interfaces"
// given as an empty host.
func parseBind(s string) (netip.Addr, uint16, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("port %q is out of range", p)
	}
	if host == "" {
		return netip.Addr{}, uint16(port), nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, 0, fmt.Errorf("%q is not an IP address", host)
	}
	return ip.Unmap(), uint16(port), nil
}

// advertised decides under which address others are to reach a node that is
// bound to the given address and port.
func advertised(ctx context.Context, r Resolver, want string, bind netip.Addr, port uint16) (netip.AddrPort, error) {
	if want != "" {
		host, p, err := splitHostPort(want, port)
		if err != nil {
			return netip.AddrPort{}, err
		}
		ips, err := resolve(ctx, r, host)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if !reachable(ips[0]) {
			return netip.AddrPort{}, fmt.Errorf("%s is no address to be reached at", ips[0])
		}
		return netip.AddrPortFrom(ips[0], p), nil
	}
	if bind.IsValid() && !bind.IsUnspecified() {
		return netip.AddrPortFrom(bind, port), nil
	}
	ip := outward()
	if !ip.IsValid() {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return netip.AddrPort{}, err
		}
		ip = pick(addrs)
	}
	if !ip.IsValid() {
		return netip.AddrPort{}, errors.New("no interface has an address that others could reach; set the advertise address")
	}
	return netip.AddrPortFrom(ip, port), nil
}

// outward is the source address of the default route, if there is one. Not the
// first interface's: on a node that runs containers that is often a bridge.
// Connecting a UDP socket chooses the route and sends nothing; the targets are
// addresses reserved for documentation (RFC 5737, RFC 3849).
func outward() netip.Addr {
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := net.Dial("udp", target)
		if err != nil {
			continue
		}
		ip := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		_ = conn.Close()
		if reachable(ip) && !ip.IsLoopback() {
			return ip
		}
	}
	return netip.Addr{}
}

// pick chooses among the addresses of the interfaces: IPv4 before IPv6, private
// before public for IPv4 and the other way round for IPv6 (where unique-local
// addresses are seldom routed), then the first.
func pick(addrs []net.Addr) netip.Addr {
	var (
		best netip.Addr
		rank int
	)
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := p.Addr().Unmap()
		if !reachable(ip) || ip.IsLoopback() {
			continue
		}
		r := 1
		if ip.Is4() {
			r += 2
		}
		if ip.IsPrivate() == ip.Is4() {
			r++
		}
		if r > rank {
			best, rank = ip, r
		}
	}
	return best
}

// reachable reports whether an address can be another node's at all.
func reachable(ip netip.Addr) bool {
	return ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && ip.Zone() == ""
}
