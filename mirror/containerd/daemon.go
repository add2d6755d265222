package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// callTimeout bounds a question that containerd answers from its database.
	// The database has one writer at a time and readers never wait for it, so
	// only a daemon that hangs takes longer.
	callTimeout = 5 * time.Second
	// walkTimeout bounds a walk over one namespace.
	walkTimeout = 30 * time.Second
	// readTimeout bounds a read of up to apiWindow through the API.
	readTimeout = 30 * time.Second
)

// daemon speaks with containerd through its socket. The generated stubs are
// used rather than containerd's client package, which brings the whole of
// running containers with it (150 packages more).
type daemon struct {
	conn       *grpc.ClientConn
	content    contentapi.ContentClient
	events     eventsapi.EventsClient
	namespaces namespacesapi.NamespacesClient
	plugins    introspectionapi.IntrospectionClient
}

// Dial prepares a connection to containerd's API at the path of its socket. It does
// not connect: the first call does, and every later one that finds the connection
// broken.
func Dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a local socket, guarded by its file mode
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// The library's own maximum is 2 min, far too long for a restart of a
		// daemon on the same machine.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: callTimeout,
		}),
		// containerd's own limit: a hundred blobs with all their labels in one
		// message exceed the library's 4 MiB.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to containerd: %w", err)
	}
	return conn, nil
}

func newDaemon(socket string) (*daemon, error) {
	conn, err := Dial(socket)
	if err != nil {
		return nil, err
	}
	return &daemon{
		conn:       conn,
		content:    contentapi.NewContentClient(conn),
		events:     eventsapi.NewEventsClient(conn),
		namespaces: namespacesapi.NewNamespacesClient(conn),
		plugins:    introspectionapi.NewIntrospectionClient(conn),
	}, nil
}

// retry makes a connection that is waiting for its next attempt try at once.
func (d *daemon) retry() { d.conn.ResetConnectBackoff() }

// root asks where the content store keeps its blobs; "" if the daemon cannot
// tell.
func (d *daemon) root(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := d.plugins.Plugins(ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==" + string(plugins.ContentPlugin) + ",id==content"},
	})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("ask containerd for its content store: %w", err)
	}
	for _, p := range answer.GetPlugins() {
		if p.GetType() == string(plugins.ContentPlugin) && p.GetID() == "content" {
			return p.GetExports()["root"], nil
		}
	}
	return "", nil
}

// listNamespaces returns the names of all of them.
func (d *daemon) listNamespaces(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := d.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", err)
	}
	names := make([]string, 0, len(answer.GetNamespaces()))
	for _, n := range answer.GetNamespaces() {
		names = append(names, n.GetName())
	}
	return names, nil
}

// walk calls fn for all content of a namespace that could be held, with what it
// refers to.
func (d *daemon) walk(ctx context.Context, namespace string, fn func(k key, size int64, refs []key)) error {
	return d.list(ctx, namespace, func(k key, i *contentapi.Info) { fn(k, i.GetSize(), references(i.GetLabels())) })
}

// list calls fn for the same content, with all that containerd knows of it.
func (d *daemon) list(ctx context.Context, namespace string, fn func(k key, i *contentapi.Info)) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), walkTimeout)
	defer cancel()
	stream, err := d.content.List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return fmt.Errorf("walk containerd's content in %q: %w", namespace, err)
	}
	for {
		page, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case status.Code(err) == codes.NotFound: // the namespace went away
			return nil
		case err != nil:
			return fmt.Errorf("walk containerd's content in %q: %w", namespace, err)
		}
		for _, i := range page.GetInfo() {
			if k, ok := keyOf(digest.Digest(i.GetDigest())); ok && i.GetSize() > 0 {
				fn(k, i)
			}
		}
	}
}

// refLabel begins the labels by which content keeps other content from being
// collected: a manifest its config and layers, an index its manifests.
const refLabel = "containerd.io/gc.ref.content"

// references reads them. Anybody who may use the socket can have written them.
func references(labels map[string]string) (refs []key) {
	for name, value := range labels {
		if strings.HasPrefix(name, refLabel) {
			if k, ok := keyOf(digest.Digest(value)); ok {
				refs = append(refs, k)
			}
		}
	}
	return refs
}

// info returns the size of a blob, or 0 if the namespace does not have it, or
// cannot exist: its name may come from an event.
func (d *daemon) info(ctx context.Context, namespace string, k key) (int64, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), callTimeout)
	defer cancel()
	answer, err := d.content.Info(ctx, &contentapi.InfoRequest{Digest: k.digest().String()})
	switch code := status.Code(err); {
	case code == codes.NotFound, code == codes.InvalidArgument, code == codes.FailedPrecondition:
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("ask containerd for %s: %w", k.digest(), err)
	}
	return max(answer.GetInfo().GetSize(), 0), nil
}

// read fills p from a blob at off, which must lie within the blob as a whole.
// The error wraps swarm.ErrNotFound or swarm.ErrUnavailable.
func (d *daemon) read(ctx context.Context, namespace string, k key, p []byte, off int64) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), readTimeout)
	defer cancel() // also ends the stream
	stream, err := d.content.Read(ctx, &contentapi.ReadContentRequest{Digest: k.digest().String(), Offset: off, Size: int64(len(p))})
	for n := 0; err == nil && n < len(p); {
		var part *contentapi.ReadContentResponse
		if part, err = stream.Recv(); err == nil {
			n += copy(p[n:], part.GetData())
		}
	}
	switch code := status.Code(err); {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), code == codes.NotFound, code == codes.OutOfRange:
		// Not there, or shorter than it should be, which is no better.
		return fmt.Errorf("read %s through containerd: %w: %w", k.digest(), swarm.ErrNotFound, err)
	default:
		return fmt.Errorf("read %s through containerd: %w: %w", k.digest(), swarm.ErrUnavailable, err)
	}
}
