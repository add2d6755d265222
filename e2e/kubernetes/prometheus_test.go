//go:build e2e

package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"

	"github.com/shoal-dev/shoal/e2e/lab"
)

const (
	prometheusAddress = "127.0.0.1:9090"
	// scrapeEvery is short, so that a test of minutes has points to draw.
	scrapeEvery = 2 * time.Second
)

// prometheusServer is the real one, beside the API server.
type prometheusServer struct {
	client *http.Client
	began  time.Time
	// alerts are the names of all that it watches for.
	alerts []string
}

// podMonitor is what the chart's may consist of: what is not here, scrapeConfig
// does not know how to translate.
type podMonitor struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec struct {
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		PodMetricsEndpoints []struct {
			Port        string
			Relabelings []struct {
				SourceLabels []string `yaml:"sourceLabels"`
				TargetLabel  string   `yaml:"targetLabel"`
			}
		} `yaml:"podMetricsEndpoints"`
	}
}

// relabel is a step of Prometheus's.
type relabel struct {
	From   []string `yaml:"source_labels,flow"`
	Regex  string   `yaml:"regex,omitempty"`
	Action string   `yaml:"action,omitempty"`
	To     string   `yaml:"target_label,omitempty"`
}

// scrapeConfig is what the operator makes of a PodMonitor.
func (m podMonitor) scrapeConfig(kubeconfig string) map[string]any {
	const pod = "__meta_kubernetes_pod_"
	steps := []relabel{{From: []string{pod + "phase"}, Regex: "Failed|Succeeded", Action: "drop"}}
	for _, name := range slices.Sorted(maps.Keys(m.Spec.Selector.MatchLabels)) {
		label := strings.NewReplacer(".", "_", "/", "_", "-", "_").Replace(name)
		steps = append(steps, relabel{From: []string{pod + "label_" + label}, Regex: m.Spec.Selector.MatchLabels[name], Action: "keep"})
	}
	endpoint := m.Spec.PodMetricsEndpoints[0]
	steps = append(steps,
		relabel{From: []string{pod + "container_port_name"}, Regex: endpoint.Port, Action: "keep"},
		relabel{From: []string{"__meta_kubernetes_namespace"}, To: "namespace"},
		relabel{From: []string{pod + "container_name"}, To: "container"},
		relabel{From: []string{pod + "name"}, To: "pod"})
	for _, r := range endpoint.Relabelings {
		steps = append(steps, relabel{From: r.SourceLabels, To: r.TargetLabel})
	}
	return map[string]any{
		"job_name": m.Metadata.Namespace + "/" + m.Metadata.Name,
		"kubernetes_sd_configs": []any{map[string]any{
			"role": "pod", "kubeconfig_file": kubeconfig, "namespaces": map[string]any{"names": []string{m.Metadata.Namespace}},
		}},
		"relabel_configs": steps,
	}
}

// startPrometheus starts it with the chart's PodMonitor and its alerts.
func (s *suite) startPrometheus(t *testing.T) {
	t.Helper()
	program, err := lab.BuildPrometheus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := s.Helm(t.Context(), "template", release, s.chart, "--namespace", namespace,
		"--kube-version", lab.KubernetesVersion, "--show-only", "templates/monitoring.yaml",
		"--set", "podMonitor.enabled=true,prometheusRule.enabled=true")
	if err != nil {
		t.Fatal(err)
	}
	var (
		monitor podMonitor
		rule    struct {
			Spec struct {
				Groups []struct {
					Name  string
					Rules []map[string]any
				}
			}
		}
	)
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		decoder := yaml.NewDecoder(strings.NewReader(doc))
		into := any(&rule)
		if strings.Contains(doc, "\nkind: PodMonitor\n") {
			decoder.KnownFields(true)
			into = &monitor
		}
		if err := decoder.Decode(into); err != nil {
			t.Fatalf("%v: %s", err, doc)
		}
	}
	if len(monitor.Spec.PodMetricsEndpoints) != 1 || len(rule.Spec.Groups) == 0 {
		t.Fatalf("no PodMonitor with one endpoint, or no rules:\n%s", manifests)
	}
	s.prometheus = &prometheusServer{client: s.control.Client(), began: time.Now()}
	t.Cleanup(s.prometheus.client.CloseIdleConnections)
	for _, g := range rule.Spec.Groups {
		for _, r := range g.Rules {
			s.prometheus.alerts = append(s.prometheus.alerts, r["alert"].(string))
		}
	}
	slices.Sort(s.prometheus.alerts)

	dir := filepath.Join(s.Lab.Dir, "prometheus")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]any{
		"prometheus.yml": map[string]any{
			"global":         map[string]any{"scrape_interval": scrapeEvery.String(), "evaluation_interval": scrapeEvery.String()},
			"rule_files":     []string{"rules.yml"},
			"scrape_configs": []any{monitor.scrapeConfig(s.pki.path("admin.kubeconfig"))},
		},
		"rules.yml": map[string]any{"groups": rule.Spec.Groups},
	} {
		text, err := yaml.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.serve("prometheus", program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAddress, "--log.level=warn")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.WaitFor(t.Context(), p, func() error {
		return s.prometheus.get("status/buildinfo", nil, &struct{}{})
	}); err != nil {
		t.Fatal(err)
	}
}

// get asks the API for something.
func (p *prometheusServer) get(what string, args url.Values, into any) error {
	resp, err := p.client.Get("http://" + prometheusAddress + "/api/v1/" + what + "?" + args.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Data            json.RawMessage
		Error           string
		Warnings, Infos []string
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	if remarks := slices.Concat(answer.Warnings, answer.Infos); answer.Error != "" || len(remarks) > 0 {
		return errors.New(answer.Error + strings.Join(remarks, "; "))
	}
	return json.Unmarshal(answer.Data, into)
}

// query evaluates an expression at a time.
func (p *prometheusServer) query(expr string, at time.Time) (model.Vector, error) {
	var v struct{ Result model.Vector }
	err := p.get("query", url.Values{"query": {expr}, "time": {unix(at)}}, &v)
	return v.Result, err
}

// queryRange evaluates an expression at each scrape between two times.
func (p *prometheusServer) queryRange(expr string, from, to time.Time) (model.Matrix, error) {
	var v struct{ Result model.Matrix }
	err := p.get("query_range", url.Values{
		"query": {expr}, "start": {unix(from)}, "end": {unix(to)}, "step": {scrapeEvery.String()},
	}, &v)
	return v.Result, err
}

func unix(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1e3, 'f', 3, 64) }

// states of the alerts, by name: inactive, pending or firing.
func (s *suite) states(t *testing.T) map[string]string {
	t.Helper()
	var answer struct {
		Groups []struct {
			Rules []struct{ Name, State, Health, LastError string }
		}
	}
	if err := s.prometheus.get("rules", nil, &answer); err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, g := range answer.Groups {
		for _, r := range g.Rules {
			if r.Health == "err" {
				t.Errorf("%s cannot be evaluated: %s", r.Name, r.LastError)
			}
			states[r.Name] = r.State
		}
	}
	return states
}

// becomes waits until an alert is in a state.
func (s *suite) becomes(t *testing.T, alert, state string) {
	t.Helper()
	eventually(t, 30*time.Second, alert+" to be "+state, func() bool { return s.states(t)[alert] == state })
}

// noAlerts: by the chart's alerts, nothing is wrong with a cluster that works. None
// of them fires, and none is about to.
func (s *suite) noAlerts(t *testing.T) {
	expr := fmt.Sprintf("count by (node) (shoal_members == %d)", len(s.Nodes))
	eventually(t, 30*time.Second, "all nodes to be scraped", func() bool {
		nodes, err := s.prometheus.query(expr, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return len(nodes) == len(s.Nodes)
	})
	states := s.states(t)
	if diff := cmp.Diff(s.prometheus.alerts, slices.Sorted(maps.Keys(states))); diff != "" {
		t.Errorf("the chart's alerts and those that are evaluated (-chart +evaluated):\n%s", diff)
	}
	for name, state := range states {
		if state != "inactive" {
			t.Errorf("%s is %s", name, state)
		}
	}
}

// neverFired: no alert fired in all that was done, but the one on the registry
// that was cut off.
func (s *suite) neverFired(t *testing.T) {
	all, err := s.prometheus.queryRange("count by (alertname, alertstate) (ALERTS)", s.prometheus.began, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		name, state := a.Metric["alertname"], a.Metric["alertstate"]
		t.Logf("%s was %s at %d evaluations", name, state, len(a.Values))
		if state == "firing" && name != "ShoalDegraded" {
			t.Errorf("%s fired", name)
		}
	}
	if len(all) == 0 {
		t.Error("Prometheus recorded no alert, not even the one that was waited for")
	}
}

// containerdStops: the alert on it is raised, and ends with the fault.
func (s *suite) containerdStops(t *testing.T) {
	const alert = "ShoalContainerdUnreachable"
	n := s.Nodes[1]
	if err := n.Containerd.Kill(); err != nil {
		t.Fatal(err)
	}
	s.becomes(t, alert, "pending")
	if err := n.startContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.becomes(t, alert, "inactive")
}
