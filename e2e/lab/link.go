package lab

import (
	"bytes"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// linkName is what a machine calls its only link.
	linkName = "eth0"
	// bridgeName is the bridge within its own namespace.
	bridgeName = "br0"
	// network is the laboratory's, which nobody outside ever sees.
	network    = "10.77"
	prefixBits = 16
	// defaultMTU is Ethernet's, in bytes.
	defaultMTU = 1500
)

// Shaping of a link's ends. The burst has to hold more than one segment as
// handed down by the kernel (64 KiB with segmentation offload), and the queue
// is that of a switch port rather than of a home router. Measured: 95.6 % of
// the nominal rate arrives as payload.
const (
	shapeBurst   = "256kb"
	shapeLatency = "30ms"
)

// Rate is a link's speed in bits per second. Zero is unshaped.
type Rate int64

// Units of a Rate.
const (
	Mbit Rate = 1e6
	Gbit Rate = 1e9
)

// ParseRate reads "100mbit", "2.5gbit" or "0" for an unshaped link.
func ParseRate(s string) (Rate, error) {
	low := strings.ToLower(strings.TrimSpace(s))
	unit := Rate(1)
	for _, u := range []struct {
		suffix string
		unit   Rate
	}{{"kbit", 1e3}, {"mbit", Mbit}, {"gbit", Gbit}, {"bit", 1}} {
		if rest, ok := strings.CutSuffix(low, u.suffix); ok {
			low, unit = rest, u.unit
			break
		}
	}
	f, err := strconv.ParseFloat(low, 64)
	if err != nil || !(f >= 0 && f*float64(unit) <= 1e12) {
		return 0, fmt.Errorf("parse rate %q: want a number with kbit, mbit or gbit, at most 1000gbit", s)
	}
	return Rate(f * float64(unit)), nil
}

// UnmarshalText makes a Rate usable as a flag.
func (r *Rate) UnmarshalText(p []byte) error {
	v, err := ParseRate(string(p))
	if err == nil {
		*r = v
	}
	return err
}

// MarshalText is the reverse of [Rate.UnmarshalText].
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String is the form that tc and [ParseRate] read.
func (r Rate) String() string {
	for _, u := range []struct {
		unit Rate
		name string
	}{{Gbit, "gbit"}, {Mbit, "mbit"}, {1e3, "kbit"}} {
		if r >= u.unit && r%u.unit == 0 {
			return fmt.Sprintf("%d%s", r/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%dbit", int64(r))
}

// Time is how long size bytes take at the nominal rate: the bound that nothing
// behind one such link can beat. Zero for an unshaped link.
func (r Rate) Time(size int64) time.Duration {
	if r == 0 {
		return 0
	}
	return time.Duration(float64(size) * 8 / float64(r) * float64(time.Second))
}

// Traffic is what went over a machine's link since it exists, in bytes, link
// layer headers included.
type Traffic struct{ Sent, Received int64 }

// Sub is the traffic since an earlier reading.
func (t Traffic) Sub(earlier Traffic) Traffic {
	return Traffic{Sent: t.Sent - earlier.Sent, Received: t.Received - earlier.Received}
}

// parseTraffic reads one device's line of /proc/net/dev.
func parseTraffic(p []byte, device string) (Traffic, error) {
	for line := range bytes.Lines(p) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok || strings.TrimSpace(name) != device {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 16 {
			return Traffic{}, fmt.Errorf("parse counters of %s: %d fields", device, len(f))
		}
		var t Traffic
		var err error
		if t.Received, err = strconv.ParseInt(f[0], 10, 64); err != nil {
			return Traffic{}, fmt.Errorf("parse counters of %s: %w", device, err)
		}
		if t.Sent, err = strconv.ParseInt(f[8], 10, 64); err != nil {
			return Traffic{}, fmt.Errorf("parse counters of %s: %w", device, err)
		}
		return t, nil
	}
	return Traffic{}, fmt.Errorf("parse counters: no device %s", device)
}

// newBridge makes the switch.
func newBridge() (*Machine, error) {
	m := &Machine{Name: "bridge"}
	if err := m.boot(); err != nil {
		m.close()
		return nil, err
	}
	if err := m.command("link add "+bridgeName+" type bridge\nlink set "+bridgeName+" up\n", "ip", "-batch", "-"); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// plug connects m to the bridge by a link of the given rate.
func plug(bridge, m *Machine, rate Rate) error {
	port := portName(m)
	// From here: within a machine no other machine's process ids are known.
	out, err := exec.Command("ip", "link", "add",
		"name", port, "netns", strconv.Itoa(bridge.holder.Process.Pid), "type", "veth",
		"peer", "name", linkName, "netns", strconv.Itoa(m.holder.Process.Pid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("plug in %s: %w: %s", m.Name, err, bytes.TrimSpace(out))
	}
	err = bridge.command("", "ip", "link", "set", port, "master", bridgeName, "up")
	if err != nil {
		return fmt.Errorf("plug in %s: %w", m.Name, err)
	}
	err = m.command(fmt.Sprintf("addr add %s/%d dev %s\nlink set %s up\n",
		m.Address, prefixBits, linkName, linkName), "ip", "-batch", "-")
	if err != nil {
		return fmt.Errorf("plug in %s: %w", m.Name, err)
	}
	return shape(bridge, m, rate)
}

// shape gives both ends of m's link a rate; 0 takes the shaping away. It may be
// changed at any time.
func shape(bridge, m *Machine, rate Rate) error {
	for _, end := range []struct {
		on     *Machine
		device string
	}{{m, linkName}, {bridge, portName(m)}} {
		var err error
		if rate == 0 {
			// There may be none to delete; what is left then is the same.
			_ = end.on.command("", "tc", "qdisc", "del", "dev", end.device, "root")
		} else {
			err = end.on.command("", "tc", "qdisc", "replace", "dev", end.device, "root",
				"tbf", "rate", rate.String(), "burst", shapeBurst, "latency", shapeLatency)
		}
		if err != nil {
			return fmt.Errorf("shape link of %s: %w", m.Name, err)
		}
	}
	return nil
}

// Narrow has the switch drop packets of more than so many bytes on their way to or
// from a node, without a word to anybody, as a tunnel does behind a firewall that
// lets no ICMP through. 0 takes it back.
func (l *Lab) Narrow(n *Node, mtu int) error {
	segments := "1" // what senders bundle until a card would cut it passes whole
	if mtu == 0 {
		mtu, segments = defaultMTU, "65535"
	}
	for _, m := range l.Nodes() {
		if err := m.command("", "ip", "link", "set", "dev", linkName, "gso_max_segs", segments); err != nil {
			return fmt.Errorf("narrow link of %s: %w", n.Name, err)
		}
	}
	if err := l.bridge.command("", "ip", "link", "set", "dev", portName(n.Machine), "mtu", strconv.Itoa(mtu)); err != nil {
		return fmt.Errorf("narrow link of %s: %w", n.Name, err)
	}
	return nil
}

// connected plugs m's cable in or pulls it out. Nothing tells the other end:
// packets vanish, as they do in life.
func connected(bridge, m *Machine, yes bool) error {
	state := "down"
	if yes {
		state = "up"
	}
	if err := bridge.command("", "ip", "link", "set", portName(m), state); err != nil {
		return fmt.Errorf("set link of %s %s: %w", m.Name, state, err)
	}
	return nil
}

// portName is the bridge's end of m's link; device names have 15 characters.
func portName(m *Machine) string { return "p-" + m.Name }
