package members

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAddressFamilies: IPv4, IPv6, and both on one socket.
func TestAddressFamilies(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	_ = l.Close()
	for _, tc := range []struct {
		name           string
		bind1, adv1    string
		bind2, adv2    string
		control1, host string
	}{
		{"IPv6", "[::1]:0", "", "[::1]:0", "", "[::1]:6501", "::1"},
		{"dual stack with IPv4 peer", ":0", "127.0.0.1", "127.0.0.1:0", "", "127.0.0.1:6501", "127.0.0.1"},
		{"dual stack with IPv6 peer", "[::]:0", "::1", "[::1]:0", "", "[::1]:6501", "::1"},
		{"unspecified IPv4", "0.0.0.0:0", "127.0.0.1", "127.0.0.1:0", "", "127.0.0.1:6501", "127.0.0.1"},
		{"both dual, one family each", ":0", "127.0.0.1", ":0", "::1", "127.0.0.1:6501", "::1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c1 := config("a")
			c1.BindAddr, c1.AdvertiseAddr = tc.bind1, tc.adv1
			a := start(t, c1)
			c2 := config("b", a.Addr())
			c2.BindAddr, c2.AdvertiseAddr = tc.bind2, tc.adv2
			b := start(t, c2)
			a.sees("a", "b")
			b.sees("a", "b")
			if got := b.Live()[0].Control; got != tc.control1 {
				t.Errorf("a's control plane is at %s", got)
			}
			if got := a.Live()[1].Host; got != tc.host {
				t.Errorf("b is at %s", got)
			}
			// UDP works both ways: each answers the other's probe.
			for _, p := range []struct{ from, to *node }{{a, b}, {b, a}} {
				if err := p.from.ping(p.to); err != nil {
					t.Errorf("ping %s: %v", p.to.Self().ID, err)
				}
			}
		})
	}
}

func TestAdvertiseName(t *testing.T) {
	t.Parallel()
	dns := &names{}
	dns.set("me.example", "::ffff:127.0.0.5")
	c := config("a")
	c.Resolver = dns
	c.AdvertiseAddr = "me.example:7000"
	a := create(t, c)
	if got := a.Addr(); got != "127.0.0.5:7000" {
		t.Errorf("advertised as %s", got)
	}
	if got := a.Self().Wire; got != "127.0.0.5:6502" {
		t.Errorf("wire at %s", got)
	}
}

func TestSeeds(t *testing.T) {
	t.Parallel()
	got, err := parseSeeds([]string{"10.0.0.1:1", "[::1]:2", "::1", "[::1]", "host", "host:3", "dns+host:4", "10.0.0.1"}, 9)
	if err != nil {
		t.Fatal(err)
	}
	want := []seed{{"10.0.0.1", 1}, {"::1", 2}, {"::1", 9}, {"::1", 9}, {"host", 9}, {"host", 3}, {"host", 4}, {"10.0.0.1", 9}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(seed{})); diff != "" {
		t.Errorf("seeds (-want +got):\n%s", diff)
	}
}

func TestPick(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		addrs []string
		want  string
	}{
		{"none", nil, ""},
		{"loopback and link-local only", []string{"127.0.0.1/8", "::1/128", "fe80::1/64", "169.254.1.1/16"}, ""},
		{"private before public", []string{"203.0.113.5/24", "10.1.2.3/8"}, "10.1.2.3"},
		{"IPv4 before IPv6", []string{"2001:db8::5/64", "203.0.113.5/24"}, "203.0.113.5"},
		{"global before unique-local", []string{"fd00::1/64", "2001:db8::5/64"}, "2001:db8::5"},
		{"the first of equals", []string{"10.0.0.2/8", "192.168.0.1/24"}, "10.0.0.2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var addrs []net.Addr
			for _, s := range tc.addrs {
				ip, n, err := net.ParseCIDR(s)
				if err != nil {
					t.Fatal(err)
				}
				addrs = append(addrs, &net.IPNet{IP: ip, Mask: n.Mask})
			}
			got := ""
			if ip := pick(addrs); ip.IsValid() {
				got = ip.String()
			}
			if got != tc.want {
				t.Errorf("picked %q, want %q", got, tc.want)
			}
		})
	}
}

// TestAdvertiseUnspecified: some address that others could reach, with the
// port in use.
func TestAdvertiseUnspecified(t *testing.T) {
	t.Parallel()
	got, err := advertised(context.Background(), &names{}, "", netip.IPv6Unspecified(), 77)
	if err != nil {
		t.Skipf("this machine has loopback only: %v", err)
	}
	if !reachable(got.Addr()) || got.Addr().IsLoopback() || got.Port() != 77 {
		t.Errorf("advertised as %s", got)
	}
}
