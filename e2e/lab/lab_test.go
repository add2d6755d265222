package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/common/expfmt"
)

func TestRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Rate
		text string // empty: an error
	}{
		{"100mbit", 100 * Mbit, "100mbit"},
		{" 1Gbit ", Gbit, "1gbit"},
		{"2.5gbit", 2500 * Mbit, "2500mbit"},
		{"8kbit", 8000, "8kbit"},
		{"512bit", 512, "512bit"},
		{"0", 0, "0bit"},
		{"-1mbit", 0, ""},
		{"fast", 0, ""},
		{"", 0, ""},
		{"NaN", 0, ""},
		{"1e30gbit", 0, ""},
	} {
		got, err := ParseRate(c.in)
		if c.text == "" {
			if err == nil {
				t.Errorf("ParseRate(%q) = %v, want an error", c.in, got)
			}
			continue
		}
		if err != nil || got != c.want || got.String() != c.text {
			t.Errorf("ParseRate(%q) = %v, %v; want %s", c.in, got, err, c.text)
		}
	}
	if got, want := (100 * Mbit).Time(125e6), 10*time.Second; got != want {
		t.Errorf("125 MB at 100 Mbit/s take %v, want %v", got, want)
	}
	if got := Rate(0).Time(1); got != 0 {
		t.Errorf("an unshaped link takes %v", got)
	}
}

func TestParseTraffic(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:12345678901   9    0    0    0     0          0         0      777       7    0    0    0     0       0          0
`
	got, err := parseTraffic([]byte(dev), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Traffic{Sent: 777, Received: 12345678901}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "eth0: 1 2 3\n", strings.ReplaceAll(dev, "777", "many")} {
		if got, err := parseTraffic([]byte(bad), "eth0"); err == nil {
			t.Errorf("parseTraffic(%q) = %+v, want an error", bad, got)
		}
	}
}

func TestParseUsage(t *testing.T) {
	// A name may look like the fields after it.
	const stat = `4242 (a) S 1 (b) S 1 4242 4242 0 -1 4194560 5 0 0 0 150 50 7 3 20 0 9 0 100 1000 10`
	const status = "Name:\tshoal\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\nRssAnon:\t    512 kB\nThreads:\t9\n"
	got, err := parseUsage([]byte(stat), []byte(status))
	if err != nil {
		t.Fatal(err)
	}
	want := Usage{CPU: 2100 * time.Millisecond, RSS: 1 << 20, PeakRSS: 2 << 20, Anon: 512 << 10}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []struct{ stat, status string }{
		{"", status}, {"1 (x) S 1", status}, {stat, "VmRSS:\tbig kB\n"},
	} {
		if got, err := parseUsage([]byte(bad.stat), []byte(bad.status)); err == nil {
			t.Errorf("parseUsage(%q, %q) = %+v, want an error", bad.stat, bad.status, got)
		}
	}
}

// ownUsage is what this process has used, by the real /proc.
func ownUsage(t *testing.T) Usage {
	t.Helper()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	u, err := parseUsage(stat, status)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsageOfThisProcess(t *testing.T) {
	u := ownUsage(t)
	if u.RSS <= 0 || u.PeakRSS < u.RSS || u.Anon <= 0 || u.Anon > u.RSS {
		t.Errorf("implausible: %+v", u)
	}
	now, err := ReadCPUTime()
	if err != nil {
		t.Fatal(err)
	}
	if idle := now.IdleSince(CPUTime{}); idle <= 0 || idle > 1 {
		t.Errorf("idle share since boot is %v", idle)
	}
}

func TestWriteLayer(t *testing.T) {
	const size = 5*mib + 12345
	program := bytes.Repeat([]byte("program"), 1000)
	var layer, again, other bytes.Buffer
	diff, err := writeLayer(&layer, program, size, 7, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writeLayer(&again, program, size, 7, 0, false); err != nil {
		t.Fatal(err)
	}
	if _, err := writeLayer(&other, program, size, 7, 1, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(layer.Bytes(), again.Bytes()) {
		t.Error("equal specifications made different layers")
	}
	if bytes.Equal(layer.Bytes(), other.Bytes()) {
		t.Error("two layers of an image are equal")
	}
	if off := layer.Len() - size; off < 0 || off > mib {
		t.Errorf("%d bytes, want about %d", layer.Len(), size)
	}

	zr, err := gzip.NewReader(&layer)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(archive); got != diff {
		t.Errorf("the archive's digest is %s, writeLayer said %s", got, diff)
	}
	files := map[string][]byte{} // as unpacking leaves them
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files["hello"], program) {
		t.Error("the program is not in the layer as it was")
	}
	unpacked := 0
	for _, content := range files {
		unpacked += len(content)
	}
	if unpacked > len(program)+fillLength {
		t.Errorf("%d bytes when unpacked", unpacked)
	}
	var squeezed bytes.Buffer
	sample := archive[len(archive)-2*mib:][:mib]
	zw := gzip.NewWriter(&squeezed)
	if err := errors.Join(second(zw.Write(sample)), zw.Close()); err != nil {
		t.Fatal(err)
	}
	if squeezed.Len() < len(sample)*99/100 {
		t.Errorf("compressible: %d bytes become %d", len(sample), squeezed.Len())
	}
}

const mib = 1 << 20

func second(_ int, err error) error { return err }

func TestBuildKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "program")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func(packages ...string) string {
		t.Helper()
		k, err := buildKey(dir, "-s", packages)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module m // v1")
	if _, err := buildKey(dir, "-s", nil); err == nil {
		t.Error("no go.sum, but a key")
	}
	write("go.sum", "sums")
	first := key("a")
	if !strings.HasPrefix(first, "program-") || first != key("a") {
		t.Errorf("key %q, then %q", first, key("a"))
	}
	if key("a", "b") == first {
		t.Error("other packages, same key")
	}
	if k, err := buildKey(dir, "-s -X v=2", []string{"a"}); err != nil || k == first {
		t.Errorf("other flags of the linker: key %q, %v", k, err)
	}
	write("go.mod", "module m // v2")
	if key("a") == first {
		t.Error("other versions, same key")
	}
}

func TestCollectMetrics(t *testing.T) {
	const text = `# TYPE shoal_requests_total counter
shoal_requests_total{cache="hit",registry="a"} 3
shoal_requests_total{cache="miss",registry="a"} 4
# TYPE shoal_bytes gauge
shoal_bytes 12
`
	got, err := collect(&expfmt.SampleDecoder{
		Dec:  expfmt.NewDecoder(strings.NewReader(text), expfmt.NewFormat(expfmt.TypeTextPlain)),
		Opts: &expfmt.DecodeOptions{},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Metrics{
		"shoal_bytes":          12,
		"shoal_requests_total": 7,
		`shoal_requests_total{cache="hit", registry="a"}`:  3,
		`shoal_requests_total{cache="miss", registry="a"}`: 4,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Config
		ok   bool
	}{
		{"one node", Config{Nodes: 1}, true},
		{"most nodes", Config{Nodes: maxNodes, Rate: Gbit}, true},
		{"none of its own", Config{}, true},
		{"fewer than none", Config{Nodes: -1}, false},
		{"too many", Config{Nodes: maxNodes + 1}, false},
		{"negative rate", Config{Nodes: 1, Rate: -1}, false},
	} {
		if err := c.in.validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
