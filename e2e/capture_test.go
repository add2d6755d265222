//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestCapture looks at the packets: what nodes say to each other on the wire
// port is TLS records from the first byte on, and no byte sequence of the layer
// is among them. The same search finds the layer in the traffic with the
// registry, which is plain HTTP here.
func TestCapture(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 3, Rate: 100 * lab.Mbit, RegistryRate: 100 * lab.Mbit})
	img := push(t, l, "capture", 30*mib, 1)
	wire := startCapture(t, l.Node(0), "tcp port "+lab.WirePort)
	plain := startCapture(t, l.Node(0), "tcp port 5000")
	pull(t, img.Ref, l.Nodes()...)

	layer, err := os.ReadFile(l.Registry.BlobPath(img.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	plainFlows := plain.flows(t)
	if n := samplesFound(layer, plainFlows); n == 0 {
		t.Error("nothing of the layer in plain traffic: the search does not work")
	}
	flows := wire.flows(t)
	var payload int
	for name, stream := range flows {
		payload += len(stream)
		records, err := countRecords(stream)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if records == 0 && len(stream) > 0 {
			t.Errorf("%s: %d bytes and no TLS record", name, len(stream))
		}
	}
	t.Logf("wire port: %d streams, %d bytes", len(flows), payload)
	if payload < len(layer)/4 {
		t.Errorf("%d bytes on the wire port for a layer of %d: the capture missed them", payload, len(layer))
	}
	if n := samplesFound(layer, flows); n != 0 {
		t.Errorf("%d samples of the layer in plain text on the wire port", n)
	}
}

// capture is a tcpdump under way.
type capture struct {
	path string
	cmd  *exec.Cmd
}

func startCapture(t *testing.T, n *lab.Node, filter string) *capture {
	t.Helper()
	c := &capture{path: filepath.Join(n.Dir, strings.ReplaceAll(filter, " ", "-")+".pcap")}
	errs := filepath.Join(n.Dir, "tcpdump.err")
	said, err := os.Create(errs)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	c.cmd = exec.Command("tcpdump", "-i", "eth0", "-w", c.path, "-s", "0", "-B", "65536", "-U", "-Z", "root", filter)
	c.cmd.Stderr = said
	if err := n.Start(c.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	eventually(t, "tcpdump to listen", func() bool {
		p, err := os.ReadFile(errs)
		return err == nil && bytes.Contains(p, []byte("listening on"))
	})
	return c
}

func (c *capture) stop() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Signal(unix.SIGINT)
		_ = c.cmd.Wait() // tcpdump's status does not matter, its file does
	}
}

// flows ends the capture and puts every TCP direction's payload together, up to
// the first byte that is missing.
func (c *capture) flows(t *testing.T) map[string][]byte {
	t.Helper()
	c.stop()
	p, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	flows, err := parseCapture(p)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// segment is some payload and its place in the stream.
type segment struct {
	at   uint32 // relative to the first byte
	data []byte
}

// parseCapture reads a pcap file of Ethernet frames with IPv4 and TCP.
func parseCapture(p []byte) (map[string][]byte, error) {
	const (
		fileHeader, recordHeader = 24, 16
		ethernet                 = 14
		syn                      = 0x02
	)
	if len(p) < fileHeader || binary.LittleEndian.Uint32(p) != 0xa1b2c3d4 {
		return nil, errors.New("not a pcap file of this byte order")
	}
	starts := map[string]uint32{}
	segments := map[string][]segment{}
	for p = p[fileHeader:]; len(p) >= recordHeader; {
		n := int(binary.LittleEndian.Uint32(p[8:]))
		if len(p) < recordHeader+n {
			break // the capture ended within a packet
		}
		frame := p[recordHeader : recordHeader+n]
		p = p[recordHeader+n:]
		if len(frame) < ethernet+40 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
			continue
		}
		ip := frame[ethernet:]
		ip = ip[:min(len(ip), int(binary.BigEndian.Uint16(ip[2:])))]
		tcp := ip[int(ip[0]&15)*4:]
		seq := binary.BigEndian.Uint32(tcp[4:])
		name := fmt.Sprintf("%d.%d.%d.%d:%d > %d.%d.%d.%d:%d", ip[12], ip[13], ip[14], ip[15],
			binary.BigEndian.Uint16(tcp), ip[16], ip[17], ip[18], ip[19], binary.BigEndian.Uint16(tcp[2:]))
		if tcp[13]&syn != 0 {
			starts[name] = seq + 1
			continue
		}
		start, ok := starts[name]
		if data := tcp[int(tcp[12]>>4)*4:]; ok && len(data) > 0 {
			segments[name] = append(segments[name], segment{seq - start, data})
		}
	}
	flows := map[string][]byte{}
	for name, list := range segments {
		slices.SortStableFunc(list, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
		var stream []byte
		for _, s := range list {
			if int(s.at) > len(stream) {
				break
			}
			if skip := len(stream) - int(s.at); skip < len(s.data) {
				stream = append(stream, s.data[skip:]...)
			}
		}
		flows[name] = stream
	}
	return flows, nil
}

// countRecords walks a stream's TLS records (RFC 8446, section 5.1).
func countRecords(stream []byte) (int, error) {
	const (
		header    = 5
		first     = 20 // change_cipher_spec
		last      = 23 // application_data
		maxLength = 1<<14 + 256
	)
	count := 0
	for at := 0; at+header <= len(stream); count++ {
		kind, major := stream[at], stream[at+1]
		length := int(binary.BigEndian.Uint16(stream[at+3:]))
		if kind < first || kind > last || major != 3 || length > maxLength {
			return count, fmt.Errorf("at byte %d: % x is no TLS record", at, stream[at:at+header])
		}
		at += header + length
	}
	return count, nil
}

// samplesFound counts how many of a layer's samples, one of 24 bytes in each
// 4 KiB, are in the streams.
func samplesFound(layer []byte, streams map[string][]byte) int {
	const every, length, key = 4096, 24, 8
	samples := map[[key]byte][]byte{}
	for at := every; at+length <= len(layer); at += every {
		samples[[key]byte(layer[at:])] = layer[at : at+length]
	}
	found := 0
	for _, s := range streams {
		for at := 0; at+length <= len(s); at++ {
			if want, ok := samples[[key]byte(s[at:])]; ok && bytes.Equal(want, s[at:at+length]) {
				found++
			}
		}
	}
	return found
}

func TestCountRecords(t *testing.T) {
	record := func(kind byte, n int) []byte {
		return append([]byte{kind, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	good := slices.Concat(record(22, 300), record(20, 1), record(23, 16000), record(23, 17)[:9])
	if n, err := countRecords(good); n != 4 || err != nil {
		t.Errorf("%d records, %v; want 4", n, err)
	}
	for name, bad := range map[string][]byte{
		"plain peer handshake": []byte("\x13BitTorrent protocol"),
		"plain HTTP":           []byte("GET / HTTP/1.1"),
		"plain after TLS":      append(record(22, 300), "hello, world"...),
	} {
		if _, err := countRecords(bad); err == nil {
			t.Errorf("%s passes for TLS", name)
		}
	}
}
