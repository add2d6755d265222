// Package doctor finds out why images do not come through Shoal on a node.
//
// A check looks at one thing and tells what it finds, in the order of a pull:
// containerd's configuration, its hosts.toml files, the mirror, the registries
// behind it, the other nodes. Nothing is changed. A [Finding] says what is the
// matter, by which evidence, what follows from it, and what to do; its id is that
// of a section in docs/troubleshooting.md.
//
// What cannot be looked at from where the doctor stands, in a pod for instance, is
// a finding too, of the least severity: silence would be taken for health.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/shoal-dev/shoal/mirror"
	"github.com/shoal-dev/shoal/mirror/upstream"
)

// Severity of a finding, the least first.
type Severity int

// The severities.
const (
	// Note is something to know.
	Note Severity = iota
	// Warning is something that makes pulls slower or dearer, or will.
	Warning
	// Error is something that keeps images from coming through Shoal.
	Error
)

func (s Severity) String() string { return [...]string{"note", "warning", "error"}[s] }

// MarshalText is for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is what a check has found.
type Finding struct {
	// ID is stable, and the title of a section in docs/troubleshooting.md.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Title says what is the matter, in a line.
	Title string `json:"title"`
	// Evidence is what was seen.
	Evidence []string `json:"evidence,omitempty"`
	// Consequence is what follows, Fix what to do.
	Consequence string `json:"consequence"`
	Fix         string `json:"fix"`
}

// Env is the node, as far as checks need it.
type Env struct {
	// Root is where the node's file system is, "/" on the node itself.
	Root string
	// Config and HostsDir are containerd's configuration file and config_path, as
	// the node has them, without Root. A file that containerd's process was started
	// with goes before Config.
	Config, HostsDir string
	// Socket is containerd's, empty if there is none.
	Socket string
	// ContainerdRoot is where its files are seen, if that is elsewhere than it says.
	ContainerdRoot string
	// Mirror and Metrics are URLs of this node's Shoal; Metrics may be empty.
	Mirror, Metrics string
	// Registries are those that are mirrored, and Upstream how Shoal speaks to them.
	Registries *mirror.Registries
	Upstream   *upstream.Client
	// Cluster, Node, CertsDir, Join and Advertise are the settings of `shoal serve`.
	// CertsDir is empty without TLS.
	Cluster, Node string
	CertsDir      string
	Join          []string
	Advertise     string
	// ControlPort, WirePort and GossipPort are other nodes' too.
	ControlPort, WirePort, GossipPort string
	// DataDir and DiskReserve are the piece store's, in bytes.
	DataDir     string
	DiskReserve int64
	// Proxy is what this program's environment says of a URL.
	Proxy func(*url.URL) (*url.URL, error)
	// Canary tells whether a pull may be tried.
	Canary bool
}

// path is where a file of the node is found from here.
func (e *Env) path(p string) string {
	if e.Root == "" || e.Root == "/" {
		return p
	}
	return e.Root + p
}

// socket is where containerd's is found from here.
func (e *Env) socket() string { return e.path(strings.TrimPrefix(e.Socket, "unix://")) }

const (
	// askTimeout bounds a question to something on the same node.
	askTimeout = 3 * time.Second
	// farTimeout bounds one to another machine: longer than a lost packet or two
	// take.
	farTimeout = 5 * time.Second
)

// Run makes all checks. The findings are in the order of their severity, the worst
// first.
func Run(ctx context.Context, e Env) []Finding {
	s := readShoal(ctx, &e)
	d := findDaemon(&e, "/proc")
	if d.config != "" {
		e.Config = d.config
	}
	version, all := checkContainerd(ctx, &e)
	for _, check := range []func() []Finding{
		func() []Finding { return checkConfig(&e, version) },
		func() []Finding { return checkHosts(&e) },
		func() []Finding { return checkProxy(ctx, &e, d) },
		func() []Finding { return checkShoal(ctx, &e, s) },
		func() []Finding { return checkCanary(ctx, &e, s) },
		func() []Finding { return checkUpstreams(ctx, &e) },
		func() []Finding { return checkPeers(ctx, &e, s) },
		func() []Finding { return checkStorage(ctx, &e, s) },
		func() []Finding { return hintClients(&e) },
	} {
		all = append(all, check()...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return all
}

// Worst is the highest severity; false if there is no finding.
func Worst(all []Finding) (Severity, bool) {
	if len(all) == 0 {
		return 0, false
	}
	return slices.MaxFunc(all, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) }).Severity, true
}

// Print tells the findings for people.
func Print(w io.Writer, all []Finding) {
	for _, f := range all {
		fmt.Fprintf(w, "%s: %s [%s]\n", strings.ToUpper(f.Severity.String()), f.Title, f.ID)
		for _, line := range f.Evidence {
			fmt.Fprintf(w, "  seen: %s\n", line)
		}
		fmt.Fprintf(w, "  so:   %s\n  do:   %s\n\n", f.Consequence, strings.ReplaceAll(f.Fix, "\n", "\n        "))
	}
	count := map[Severity]int{}
	for _, f := range all {
		count[f.Severity]++
	}
	fmt.Fprintf(w, "%d errors, %d warnings, %d notes\n", count[Error], count[Warning], count[Note])
}

// client asks without any proxy: what it asks is near.
func client(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout:       timeout,
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
