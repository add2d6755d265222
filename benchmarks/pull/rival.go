package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// rivalPatience is how long a rival may take to be ready.
const rivalPatience = time.Minute

// rival is somebody else's mirror on every node.
type rival struct {
	hosts     *template.Template
	fields    map[*lab.Node]rivalFields
	processes map[*lab.Node]*lab.Process
}

// rivalFields are what the templates of a rival may use.
type rivalFields struct {
	Node, Address         string
	Peers, First          string
	Registry, RegistryURL string
	Socket, ContentRoot   string
	HostsDir, Dir         string
	Index, Nodes          int
}

// startRival starts a rival on all nodes and waits until it answers.
func startRival(ctx context.Context, l *lab.Lab, o options) (*rival, error) {
	command, err := template.New("-other-command").Option("missingkey=error").Parse(o.otherCommand)
	if err != nil {
		return nil, err
	}
	ready, err := template.New("-other-ready").Option("missingkey=error").Parse(o.otherReady)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(o.otherHosts)
	if err != nil {
		return nil, fmt.Errorf("-other-hosts: %w", err)
	}
	r := &rival{fields: map[*lab.Node]rivalFields{}, processes: map[*lab.Node]*lab.Process{}}
	if r.hosts, err = template.New("-other-hosts").Option("missingkey=error").Parse(string(text)); err != nil {
		return nil, err
	}
	var peers []string
	for _, n := range l.Nodes() {
		peers = append(peers, n.Address)
	}
	for i, n := range l.Nodes() {
		f := rivalFields{
			Node: n.Name, Address: n.Address, Peers: strings.Join(peers, ","), First: peers[0], Index: i, Nodes: len(peers),
			Registry: lab.RegistryHost, RegistryURL: "http://" + lab.RegistryHost,
			Socket: n.ContainerdSocket(), ContentRoot: n.ContentRoot(), HostsDir: n.HostsDir(),
			Dir: filepath.Join(n.Dir, o.otherName),
		}
		r.fields[n] = f
		if err := os.MkdirAll(f.Dir, 0o755); err != nil {
			return nil, fmt.Errorf("start %s: %w", o.otherName, err)
		}
		line, err := fill(command, f)
		if err != nil {
			return nil, err
		}
		if r.processes[n], err = n.StartProgram(o.otherName, "/bin/sh", "-c", "exec "+line); err != nil {
			return nil, err
		}
	}
	if o.otherReady == "" {
		return r, nil
	}
	for _, n := range l.Nodes() {
		url, err := fill(ready, r.fields[n])
		if err != nil {
			return nil, err
		}
		if err := awaitAnswer(ctx, n, url); err != nil {
			return nil, fmt.Errorf("%s on %s is not ready: %w; its log is %s", o.otherName, n.Name, err, r.processes[n].LogPath)
		}
	}
	return r, nil
}

// awaitAnswer waits for any HTTP answer.
func awaitAnswer(ctx context.Context, n *lab.Node, url string) error {
	ctx, cancel := context.WithTimeout(ctx, rivalPatience)
	defer cancel()
	c := n.Client()
	defer c.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// serve points a node's containerd to the rival.
func (r *rival) serve(n *lab.Node) error {
	toml, err := fill(r.hosts, r.fields[n])
	if err != nil {
		return err
	}
	return n.SetHosts(toml)
}

func fill(t *template.Template, f rivalFields) (string, error) {
	var b strings.Builder
	if err := t.Execute(&b, f); err != nil {
		return "", fmt.Errorf("fill in template: %w", err)
	}
	return b.String(), nil
}
