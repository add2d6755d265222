package chart

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"gopkg.in/yaml.v3"
)

const docsDir = "../../docs"

// ruleFile is a file of Prometheus's.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func readRules(t *testing.T) ruleFile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chartDir, "files/rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	if err := yaml.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestRunbook: each alert says what it should, and has a section in the runbook,
// which has no others.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(docsDir, "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^### (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		sections[m[1]] = true
	}
	alerts := map[string]bool{}
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = true
			const page = "https://github.com/shoal-dev/shoal/blob/main/docs/runbook.md#"
			if want := page + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: runbook_url %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
			}
			if s := r.Labels["severity"]; !slices.Contains([]string{"info", "warning", "critical"}, s) {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s: no summary or no description", r.Alert)
			}
			checkExpr(t, r.Alert, r.Expr)
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(alerts)), slices.Sorted(maps.Keys(sections))); diff != "" {
		t.Errorf("alerts and sections of docs/runbook.md (-alerts +sections):\n%s", diff)
	}
}

// metricLabels are the labels of each metric, by docs/reference/metrics.md.
func metricLabels(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docsDir, "reference/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(shoal_[a-z_]+)` \\| (\\w+) \\|([^|]*)\\|")
	labels := map[string][]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		labels[m[1]] = regexp.MustCompile("[a-z_]+").FindAllString(m[3], -1)
		if m[2] == "histogram" {
			labels[m[1]+"_bucket"] = append(labels[m[1]], "le")
		}
	}
	if len(labels) < 40 {
		t.Fatalf("found %d metrics in the docs: looking for them in the wrong way", len(labels))
	}
	return labels
}

// target are the labels that scraping adds.
var target = []string{"job", "instance", "node"}

// checkExpr verifies that an expression uses metrics and labels that exist.
func checkExpr(t *testing.T, where, expr string) {
	t.Helper()
	all := metricLabels(t)
	known := slices.Clone(target)
	used := 0
	for _, m := range regexp.MustCompile(`\b(shoal_[a-z_]+)(\{[^}]*\})?`).FindAllStringSubmatch(expr, -1) {
		labels, ok := all[m[1]]
		if !ok {
			t.Errorf("%s: no metric %s", where, m[1])
		}
		used++
		known = append(known, labels...)
		for _, l := range regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`).FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(labels, l[1]) && !slices.Contains(target, l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
		}
	}
	if used == 0 {
		t.Errorf("%s: no metric of Shoal in %q", where, expr)
	}
	for _, m := range regexp.MustCompile(`\b(?:by|on|without)\s*\(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
		for _, l := range strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' }) {
			if !slices.Contains(known, l) {
				t.Errorf("%s: no metric in %q has the label %s", where, expr, l)
			}
		}
	}
}

// TestDashboard: what Grafana draws exists, and is drawn beside each other.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "files/dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID, Title string
		Templating struct{ List []struct{ Name string } }
		Panels     []struct {
			ID                       int
			Type, Title, Description string
			GridPos                  struct{ X, Y, W, H int }
			Targets                  []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	variables := map[string]bool{"__rate_interval": true, "__range": true}
	for _, v := range d.Templating.List {
		variables[v.Name] = true
	}
	ids, cells := map[int]string{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("%s and %s have the id %d", other, p.Title, p.ID)
		}
		ids[p.ID] = p.Title
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s is outside of the grid: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, ok := cells[[2]int{x, y}]; ok {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Description == "" {
			t.Errorf("%s: no target or no description", p.Title)
		}
		for _, q := range p.Targets {
			checkExpr(t, p.Title, q.Expr)
			for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(q.Expr, -1) {
				if !variables[v[1]] {
					t.Errorf("%s: no variable %s", p.Title, v[1])
				}
			}
		}
	}
}

// TestRuleChoice: the baseline is left out unless it is wanted, and so is any
// alert that is not.
func TestRuleChoice(t *testing.T) {
	total := 0
	for _, g := range readRules(t).Groups {
		total += len(g.Rules)
	}
	for _, c := range []struct {
		args string
		want int
		not  string
	}{
		{"--set prometheusRule.enabled=true", total - 1, "ShoalNoTraffic"},
		{"--set prometheusRule.enabled=true --set prometheusRule.baseline=true", total, "-"},
		{"--set prometheusRule.enabled=true --set prometheusRule.disabled={ShoalBypassed,ShoalVersionSkew}", total - 3, "ShoalBypassed"},
	} {
		rule := find[*monitoring.PrometheusRule](t, render(t, strings.Fields(c.args)...), "shoal")
		n := 0
		for _, g := range rule.Spec.Groups {
			if len(g.Rules) == 0 {
				t.Errorf("%s: group %s is empty", c.args, g.Name)
			}
			for _, r := range g.Rules {
				n++
				if r.Alert == c.not {
					t.Errorf("%s: %s is there", c.args, r.Alert)
				}
			}
		}
		if n != c.want {
			t.Errorf("%s: %d alerts, want %d", c.args, n, c.want)
		}
	}
}
