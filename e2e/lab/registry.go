package lab

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	// RegistryHost is what images' names begin with. Every node finds it in
	// its hosts file.
	RegistryHost = "registry.lab:5000"
	registryPort = "5000"
	// registryDebugPort is where it tells how it fares, on its loopback only.
	registryDebugPort = "5001"
	registryName      = "registry.lab"
	// Nodes have the addresses 10.77.1.x, guests 10.77.2.x.
	registryAddress = network + ".0.1"
)

// Registry is a real distribution registry on a machine of its own.
type Registry struct {
	*Machine
	// Process is the server.
	Process *Process
	// Authorization is the header with which images are pushed.
	Authorization string

	start  func() (*Process, error)
	dir    string
	client *http.Client
}

func (l *Lab) newRegistry(ctx context.Context) (*Registry, error) {
	m := &Machine{Name: "registry", Address: registryAddress}
	r := &Registry{Machine: m, dir: filepath.Join(l.Dir, "registry"), client: m.Client()}
	if err := r.setUp(ctx, l); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *Registry) setUp(ctx context.Context, l *Lab) error {
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return fmt.Errorf("set up registry: %w", err)
	}
	if err := r.boot(); err != nil {
		return err
	}
	if err := plug(l.bridge, r.Machine, l.cfg.RegistryRate); err != nil {
		return err
	}
	if l.cfg.Memory {
		err := r.inside(func() error { return unix.Mount("tmpfs", r.dir, "tmpfs", 0, "size=100%") })
		if err != nil {
			return fmt.Errorf("set up registry: mount memory: %w", err)
		}
	}
	config := filepath.Join(l.Dir, "registry.yml")
	text := fmt.Sprintf(`version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %s
    maxthreads: 200
  maintenance:
    uploadpurging:
      enabled: false
validation:
  manifests:
    urls:
      allow: ['^http://%s:']
http:
  addr: 0.0.0.0:%s
  debug:
    addr: 127.0.0.1:%s
    prometheus:
      enabled: true
%s%s`, r.dir, registryName, registryPort, registryDebugPort, l.cfg.registryHeaders(), l.cfg.RegistryAuth)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("set up registry: %w", err)
	}
	r.start = func() (*Process, error) {
		env := []string{"PATH=" + os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none"}
		return startProcess(r.Machine, "registry", filepath.Join(l.Dir, "registry.log"), env,
			l.programs.Registry, "serve", config)
	}
	return r.Start(ctx)
}

// registryHeaders is the rest of the http section of the registry's configuration.
func (c Config) registryHeaders() string {
	if len(c.RegistryHeaders) == 0 {
		return ""
	}
	text := "  headers:\n"
	for _, name := range slices.Sorted(maps.Keys(c.RegistryHeaders)) {
		text += fmt.Sprintf("    %s: [%q]\n", name, c.RegistryHeaders[name])
	}
	return text
}

// Start starts the server after it was stopped or killed.
func (r *Registry) Start(ctx context.Context) error {
	p, err := r.start()
	if err != nil {
		return err
	}
	r.Process = p
	return waitFor(ctx, p, func() error {
		resp, err := r.client.Get(r.url("/v2/"))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// BlobPath is the file in which the registry keeps a blob.
func (r *Registry) BlobPath(d digest.Digest) string {
	return filepath.Join(r.blobDir(d), "data")
}

func (r *Registry) blobDir(d digest.Digest) string {
	hex := d.Encoded()
	return r.path(filepath.Join(r.dir, "docker/registry/v2/blobs/sha256", hex[:2], hex))
}

// Delete removes images with all their blobs and their repositories. No image
// that is to stay may share them.
func (r *Registry) Delete(images ...Image) error {
	for _, img := range images {
		dirs := []string{
			r.path(filepath.Join(r.dir, "docker/registry/v2/repositories", img.Repository)),
			r.blobDir(img.Manifest.Digest), r.blobDir(img.Config.Digest),
		}
		for _, l := range img.Layers {
			dirs = append(dirs, r.blobDir(l.Digest))
		}
		for _, dir := range dirs {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("delete %s from the registry: %w", img.Ref, err)
			}
		}
	}
	return nil
}

// Metrics reads what the registry says of itself.
func (r *Registry) Metrics(ctx context.Context) (Metrics, error) {
	m, err := ReadMetrics(ctx, r.client, "http://127.0.0.1:"+registryDebugPort+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("read metrics of the registry: %w", err)
	}
	return m, nil
}

// Served is how many bytes of answers the registry has given to its sockets so
// far, by its own count: content and errors, without the headers of HTTP and of
// the network. An answer counts when it ends.
func (r *Registry) Served(ctx context.Context) (int64, error) {
	m, err := r.Metrics(ctx)
	return int64(m["registry_http_response_size_bytes_sum"]), err
}

// url is a location on the registry for clients on its own machine, whose
// loopback is not shaped.
func (r *Registry) url(path string) string { return "http://127.0.0.1:" + registryPort + path }

func (r *Registry) close() {
	r.client.CloseIdleConnections()
	r.Machine.close()
}

// waitFor repeats ask until it succeeds. It ends early with ctx or when p, which
// is to answer, has ended.
func waitFor(ctx context.Context, p *Process, ask func() error) error {
	const (
		patience = time.Minute
		interval = 20 * time.Millisecond
	)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(interval):
		case <-p.Done():
			return p.failed()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w\n%s", p.Name, ctx.Err(), err, p.tail())
		}
	}
}
