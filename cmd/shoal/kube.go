package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kubeCmd has what the Helm chart's hooks need of the Kubernetes API. A client
// library would be larger than the rest of the program.
type kubeCmd struct {
	WaitDaemonset waitDaemonsetCmd `cmd:"" help:"Wait until a DaemonSet is ready on all its nodes."`
}

type waitDaemonsetCmd struct {
	Name      string        `arg:"" name:"name" help:"Name of the DaemonSet."`
	Namespace string        `env:"-" required:"" placeholder:"NS" help:"Namespace of the DaemonSet."`
	Timeout   time.Duration `env:"-" default:"5m" placeholder:"TIME" help:"How long to wait. Default: ${default}."`
	Delete    bool          `env:"-" help:"Delete it then. If it does not become ready, it stays."`
}

// Help implements kong.HelpProvider.
func (*waitDaemonsetCmd) Help() string {
	return `The Helm chart waits so, when it is uninstalled, until every node is as it was. It runs in a pod whose service account may get the DaemonSet and, for --delete, delete it.

Exit status: 0 on success, 1 on failure or when the time is up, 2 for a mistake in the arguments.`
}

// Run implements the command.
func (c *waitDaemonsetCmd) Run(ctx context.Context, s std) error {
	api, err := inCluster(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"), serviceAccount)
	if err != nil {
		return err
	}
	return api.waitDaemonset(ctx, s.err, *c)
}

const (
	// serviceAccount is where Kubernetes puts a pod's credentials.
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"
	// pollInterval is how often the API server is asked: one small object.
	pollInterval = time.Second
	// requestTimeout bounds one request.
	requestTimeout = 15 * time.Second
	// maxReply bounds a reply in bytes; etcd keeps no larger objects.
	maxReply = 2 << 20
)

// kubeAPI is the API server of the cluster that this process runs in.
type kubeAPI struct {
	base, tokenFile string
	client          *http.Client
}

// inCluster finds the API server as Kubernetes tells every pod.
func inCluster(host, port, dir string) (*kubeAPI, error) {
	if host == "" || port == "" {
		return nil, errors.New("find API server: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this command runs in a pod")
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("find API server: %w: does the pod have a service account token?", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("find API server: no certificate in %s", filepath.Join(dir, "ca.crt"))
	}
	return &kubeAPI{
		base:      "https://" + net.JoinHostPort(host, port),
		tokenFile: filepath.Join(dir, "token"),
		client: &http.Client{
			Timeout:   requestTimeout,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
		},
	}, nil
}

// daemonset is the part of a DaemonSet that says how far it is.
type daemonset struct {
	Metadata struct {
		Generation int64 `json:"generation"`
	} `json:"metadata"`
	Status struct {
		ObservedGeneration int64 `json:"observedGeneration"`
		Desired            int   `json:"desiredNumberScheduled"`
		Updated            int   `json:"updatedNumberScheduled"`
		Ready              int   `json:"numberReady"`
	} `json:"status"`
}

// ready tells whether the controller has seen it, and all its pods are ready.
func (d daemonset) ready() bool {
	return d.Status.ObservedGeneration >= d.Metadata.Generation &&
		d.Status.Updated >= d.Status.Desired && d.Status.Ready >= d.Status.Desired
}

func (d daemonset) String() string {
	if d.Status.ObservedGeneration < d.Metadata.Generation {
		return "not looked at by its controller yet"
	}
	return fmt.Sprintf("ready on %d of %d nodes", min(d.Status.Ready, d.Status.Updated), d.Status.Desired)
}

// waitDaemonset tells progress on w. A request that fails is tried again: the API
// server may be restarting. One that is refused is not.
func (k *kubeAPI) waitDaemonset(ctx context.Context, w io.Writer, c waitDaemonsetCmd) error {
	path := "/apis/apps/v1/namespaces/" + url.PathEscape(c.Namespace) + "/daemonsets/" + url.PathEscape(c.Name)
	name := c.Namespace + "/" + c.Name
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	state := "not found out yet"
	for {
		var d daemonset
		err := k.do(ctx, http.MethodGet, path, &d)
		var refused statusError
		switch {
		case errors.As(err, &refused) && refused.final():
			return fmt.Errorf("wait for DaemonSet %s: %w", name, err)
		case err != nil && ctx.Err() == nil:
			fmt.Fprintf(w, "DaemonSet %s: %v\n", name, err)
		case err == nil:
			if d.String() != state {
				state = d.String()
				fmt.Fprintf(w, "DaemonSet %s: %s\n", name, state)
			}
			if d.ready() {
				return k.finish(ctx, path, name, c.Delete)
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("wait for DaemonSet %s: after %s it is %s. 'kubectl --namespace %s get pods -o wide' tells which nodes are missing and 'kubectl describe' why; it stays and goes on by itself, and is not needed any more when it is ready everywhere: 'kubectl --namespace %s delete daemonset %s'",
					name, c.Timeout, state, c.Namespace, c.Namespace, c.Name)
			}
			return fmt.Errorf("wait for DaemonSet %s: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}

// finish deletes the DaemonSet, if that is wanted.
func (k *kubeAPI) finish(ctx context.Context, path, name string, remove bool) error {
	if !remove {
		return nil
	}
	if err := k.do(ctx, http.MethodDelete, path+"?propagationPolicy=Background", nil); err != nil {
		return fmt.Errorf("delete DaemonSet %s: %w", name, err)
	}
	return nil
}

// statusError is an answer that is no success.
type statusError struct {
	code    int
	message string
}

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s: %s", e.code, http.StatusText(e.code), e.message))
}

// final tells whether asking again is of no use.
func (e statusError) final() bool {
	return e.code < 500 && e.code != http.StatusTooManyRequests
}

// do makes a request and decodes the answer into out, unless that is nil.
func (k *kubeAPI) do(ctx context.Context, method, path string, out any) error {
	// The kubelet renews the token while the pod runs.
	token, err := os.ReadFile(k.tokenFile)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, k.base+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	res, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReply))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		var status struct {
			Message string `json:"message"`
		}
		_ = json.Unmarshal(body, &status) // a proxy's answer need not be JSON
		return statusError{res.StatusCode, status.Message}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}
