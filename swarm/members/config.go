package members

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// KeyLength is the length of a gossip key in bytes: AES-256.
const KeyLength = 32

// Config is what a node needs to be a member.
type Config struct {
	// Cluster is the cluster's id, the same on all nodes: letters, digits,
	// dots, dashes and underscores, at most 253 bytes. Nodes with different
	// ids ignore each other. Required.
	Cluster string
	// NodeID names this node, uniquely in the cluster and stable over
	// restarts: a host name's characters, at most 253. Required.
	NodeID string
	// BindAddr is the ip:port to listen on, UDP and TCP. An empty or
	// unspecified ip means all interfaces, of both address families; port 0
	// means any free one. Required.
	BindAddr string
	// AdvertiseAddr is where others reach this node: an IP address or a name
	// that is resolved once at the start, optionally with :port where a port
	// is mapped. Empty means the address of BindAddr or, when that is
	// unspecified, the one from which this node would reach the outside. The
	// control and wire ports are reached at the same address.
	AdvertiseAddr string
	// ControlPort and WirePort are where this node serves its peers.
	// Required.
	ControlPort, WirePort int
	// Zone says where the node is, for instance a cloud's availability zone.
	// At most 63 bytes. Empty means unknown.
	Zone string
	// Join lists the seeds: host:port, where host is an address or a DNS name
	// with any number of addresses. Without port, that of BindAddr is meant.
	// A "dns+" before a name is allowed and changes nothing. A node without
	// seeds waits to be joined.
	Join []string
	// SecretKey encrypts and authenticates all gossip: 32 bytes, the same on
	// all nodes. Required unless Insecure.
	SecretKey []byte
	// Insecure allows gossip in the clear, in which anyone on the network can
	// become a member. It excludes SecretKey.
	Insecure bool
	// Resolver resolves names; nil means the system's.
	Resolver Resolver
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log receives the library's lines too.
	Log zerolog.Logger
	// Registerer receives the metrics; nil means none.
	Registerer prometheus.Registerer

	hooks hooks
}

// Resolver is the part of [net.Resolver] in use here.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// hooks are the tests' ways in. The zero value changes nothing.
type hooks struct {
	// wrap stands between the library and the network.
	wrap func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport
	// tune changes the library's timing.
	tune func(*memberlist.Config)
	pace pace
}

// validate checks all that can be checked without the network.
func (c Config) validate() error {
	if err := checkName(c.Cluster, maxLabel); err != nil {
		return fmt.Errorf("cluster id: %w", err)
	}
	for what, port := range map[string]int{"control": c.ControlPort, "wire": c.WirePort} {
		if port < 1 || port > 65535 {
			return fmt.Errorf("%s port %d is out of range", what, port)
		}
	}
	switch {
	case c.Insecure && len(c.SecretKey) > 0:
		return errors.New("a secret key and insecure gossip exclude each other")
	case !c.Insecure && len(c.SecretKey) != KeyLength:
		return fmt.Errorf("secret key has %d bytes, not %d", len(c.SecretKey), KeyLength)
	}
	return nil
}

// library is the configuration of memberlist: its LAN preset, which Consul
// runs at thousands of nodes, with what differs here.
func (c Config) library(name string, t memberlist.NodeAwareTransport) (*memberlist.Config, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name = name
	conf.Label = c.Cluster
	conf.Transport = t
	conf.Logger = newLibraryLog(c.Log)
	// Restarts are new names here (instances), so a name never moves and
	// DeadNodeReclaimTime stays off.

	// The preset's probing (one probe a second, half a second for the answer,
	// suspicion of 4·log10(n) s) stays: it is a compromise between noticing
	// the dead and mistaking a node whose link is full of image data for one.

	// Full exchanges of state mend what datagrams lost, such as a few of a
	// thousand nodes that started together. The library stretches the interval
	// with the size of the cluster: 30 s would be 3 min at 1000 nodes, 10 s are
	// one, for about 8 kB/s.
	conf.PushPullInterval = 10 * time.Second
	// 1200 bytes go through any network without fragments, IPv6's minimum MTU
	// of 1280 and tunnels included (RFC 9000, section 14). The preset's 1400
	// does not fit a WireGuard overlay's 1420 with headers.
	conf.UDPBufferSize = 1200
	// LZW costs more time than its few saved bytes of metadata are worth.
	conf.EnableCompression = false
	if len(c.SecretKey) > 0 {
		ring, err := memberlist.NewKeyring(nil, c.SecretKey)
		if err != nil {
			return nil, err
		}
		conf.Keyring = ring
	}
	if c.hooks.tune != nil {
		c.hooks.tune(conf)
	}
	return conf, nil
}
