package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the storage in use
	"github.com/sirupsen/logrus"
)

// registry is a real registry on a free port.
type registry struct {
	host string
	// sent counts every byte that left it, headers included.
	sent atomic.Int64
	srv  *http.Server
}

func startRegistry(dir string) (*registry, error) {
	// The registry logs through a global; what matters reaches its clients.
	logrus.SetOutput(io.Discard)
	cfg := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  {"rootdirectory": dir},
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}}
	cfg.HTTP.Secret = rand.Text()
	cfg.Log.AccessLog.Disabled = true
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	r := &registry{host: ln.Addr().String()}
	r.srv = &http.Server{Handler: handlers.NewApp(context.Background(), cfg)}
	go func() { _ = r.srv.Serve(countingListener{ln, &r.sent}) }()
	return r, nil
}

func (r *registry) close() { _ = r.srv.Close() }

// countingListener counts what its connections send.
type countingListener struct {
	net.Listener
	sent *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l.sent}, nil
}

// countingConn has no ReadFrom, so that no byte goes around Write by sendfile.
type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}
