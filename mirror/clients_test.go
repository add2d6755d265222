package mirror

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	rcdescriptor "github.com/regclient/regclient/types/descriptor"
	"github.com/regclient/regclient/types/ref"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	orasremote "oras.land/oras-go/v2/registry/remote"
)

// content is what a client was given, by digest.
type content map[digest.Digest][]byte

// libraries are those with which programs written in Go pull, each as its
// users would set it up for a mirror. pull fetches the manifest of app:v1 and
// all that it names, through tm, the mirror of reg.
var libraries = []struct {
	name string
	pull func(ctx context.Context, tm *testMirror, reg *testRegistry) (content, error)
}{
	// containerd, and all that builds on it, sends ns.
	{"containerd", func(ctx context.Context, tm *testMirror, reg *testRegistry) (content, error) {
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: tm.Client(), Scheme: "http", Host: tm.Listener.Addr().String(), Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			}}, nil
		}})
		name, desc, err := resolver.Resolve(ctx, reg.name+"/app:v1")
		if err != nil {
			return nil, err
		}
		fetcher, err := resolver.Fetcher(ctx, name)
		if err != nil {
			return nil, err
		}
		return follow(desc, func(d ocispec.Descriptor) (io.ReadCloser, error) { return fetcher.Fetch(ctx, d) })
	}},
	// The others know no ns: they ask the mirror of a default registry by its own
	// name.
	{"go-containerregistry", func(ctx context.Context, tm *testMirror, _ *testRegistry) (content, error) {
		tag, err := name.NewTag(tm.Listener.Addr().String()+"/app:v1", name.Insecure)
		if err != nil {
			return nil, err
		}
		opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(tm.Client().Transport)}
		got, err := remote.Get(tag, opts...)
		if err != nil {
			return nil, err
		}
		return follow(ocispec.Descriptor{Digest: digest.Digest(got.Digest.String())},
			func(d ocispec.Descriptor) (io.ReadCloser, error) {
				if d.Digest.String() == got.Digest.String() {
					return io.NopCloser(bytes.NewReader(got.Manifest)), nil
				}
				layer, err := remote.Layer(tag.Digest(d.Digest.String()), opts...)
				if err != nil {
					return nil, err
				}
				return layer.Compressed()
			})
	}},
	{"oras-go", func(ctx context.Context, tm *testMirror, _ *testRegistry) (content, error) {
		repo, err := orasremote.NewRepository(tm.Listener.Addr().String() + "/app")
		if err != nil {
			return nil, err
		}
		repo.PlainHTTP, repo.Client = true, tm.Client()
		store := memory.New()
		desc, err := oras.Copy(ctx, repo, "v1", store, "v1", oras.DefaultCopyOptions)
		if err != nil {
			return nil, err
		}
		return follow(desc, func(d ocispec.Descriptor) (io.ReadCloser, error) { return store.Fetch(ctx, d) })
	}},
	// regclient takes mirrors of a registry, too, and would fall back to it.
	{"regclient", func(ctx context.Context, tm *testMirror, reg *testRegistry) (content, error) {
		mirror := tm.Listener.Addr().String()
		rc := regclient.New(regclient.WithConfigHost(
			config.Host{Name: reg.name, Hostname: reg.name, TLS: config.TLSDisabled, Mirrors: []string{mirror}},
			config.Host{Name: mirror, Hostname: mirror, TLS: config.TLSDisabled},
		))
		r, err := ref.New(reg.name + "/app:v1")
		if err != nil {
			return nil, err
		}
		m, err := rc.ManifestGet(ctx, r)
		if err != nil {
			return nil, err
		}
		defer rc.Close(ctx, r)
		return follow(ocispec.Descriptor{Digest: m.GetDescriptor().Digest},
			func(d ocispec.Descriptor) (io.ReadCloser, error) {
				if d.Digest == m.GetDescriptor().Digest {
					p, err := m.RawBody()
					return io.NopCloser(bytes.NewReader(p)), err
				}
				return rc.BlobGet(ctx, r, rcdescriptor.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
			})
	}},
}

// follow fetches a manifest and what it names.
func follow(root ocispec.Descriptor, fetch func(ocispec.Descriptor) (io.ReadCloser, error)) (content, error) {
	got := content{}
	read := func(d ocispec.Descriptor) ([]byte, error) {
		r, err := fetch(d)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		p, err := io.ReadAll(r)
		got[d.Digest] = p
		return p, err
	}
	p, err := read(root)
	if err != nil {
		return nil, err
	}
	man, ok := parseManifest(p, "")
	if !ok {
		return nil, errors.New("no manifest")
	}
	for _, d := range man.names {
		if _, err := read(d); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// TestClients: the libraries get an image and an artifact through the mirror,
// byte for byte, and nothing past it.
func TestClients(t *testing.T) {
	for _, c := range libraries {
		for what, push := range map[string]func(*testRegistry) image{
			"image":    func(reg *testRegistry) image { return reg.pushImage(t, "app", "v1", 10_000, 2<<20) },
			"artifact": func(reg *testRegistry) image { return reg.pushArtifact(t, "app", "v1") },
		} {
			t.Run(c.name+" "+what, func(t *testing.T) {
				reg := newRegistry(t)
				img := push(reg)
				node := new(cluster).join(t)
				tm := newMirror(t, node, newClient(t, reg), func(c *Config) { c.DefaultRegistry = reg.name }, reg.name)
				want := content{img.desc.Digest: img.manifest}
				for d, p := range img.content {
					want[d] = p
				}
				for _, state := range []string{"cold", "with the registry gone"} {
					got, err := c.pull(t.Context(), tm, reg)
					if err != nil {
						t.Fatalf("%s: %v", state, err)
					}
					if diff := cmp.Diff(digests(want), digests(got)); diff != "" {
						t.Errorf("%s (-want +got):\n%s", state, diff)
					}
					for d, p := range got {
						if digest.FromBytes(p) != d {
							t.Errorf("%s: %d wrong bytes for %s", state, len(p), d)
						}
					}
					reg.answer(http.StatusServiceUnavailable)
				}
				total := 0.0
				for _, p := range want {
					total += float64(len(p))
				}
				eventually(t, "each byte is counted once from the origin", func() bool {
					return tm.counted(t, "shoal_mirror_bytes_total", "source", "origin") == total
				})
			})
		}
	}
}

func digests(c content) map[digest.Digest]int {
	sizes := map[digest.Digest]int{}
	for d, p := range c {
		sizes[d] = len(p)
	}
	return sizes
}
