//go:build e2e

package kubernetes

import (
	"cmp"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
)

var drawing = flag.String("dashboard", "", "draw the dashboard, with what the cluster went through, into this SVG `file`")

// dashboard is what Grafana gets of the chart.
type dashboard struct{ Panels []panel }

type panel struct {
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit   string
			Custom struct{ Stacking struct{ Mode string } }
		}
	}
	Targets []struct{ Expr, LegendFormat string }
	// MaxDataPoints is how many columns a panel of single values has.
	MaxDataPoints int

	// series are the answers of Prometheus.
	series []series
}

// series has a name and finite values, at least one.
type series struct {
	legend string
	points []model.SamplePair
}

// inTrouble are the panels that may be empty as long as nothing goes wrong.
var inTrouble = []string{"Left to the registry", "Help from the registry", "Wrong bytes and messages"}

// dashboard: each of its panels shows something of the cluster that all this was
// done to.
func (s *suite) dashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(s.chart, "files/dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	from, to := s.prometheus.began, time.Now()
	for i := range d.Panels {
		p := &d.Panels[i]
		if err := s.prometheus.fill(p, from, to); err != nil {
			t.Errorf("%s: %v", p.Title, err)
		}
		switch {
		case p.Type == "row":
		case len(p.series) == 0 && !slices.Contains(inTrouble, p.Title):
			t.Errorf("%s shows nothing", p.Title)
		case p.Type == "stat":
			for _, l := range p.series {
				t.Logf("%s: %s %s", p.Title, p.humanize(l.last()), l.legend)
			}
		}
	}
	svg, err := draw(d, from, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cmp.Or(*drawing, filepath.Join(t.ArtifactDir(), "dashboard.svg")), svg, 0o644); err != nil {
		t.Fatal(err)
	}
}

// fill asks what Grafana would ask for a panel, with all that its variables let one
// choose from.
func (p *prometheusServer) fill(into *panel, from, to time.Time) error {
	variables := strings.NewReplacer(
		"$job", ".*", "$instance", ".*",
		"$__rate_interval", model.Duration(4*scrapeEvery).String(),
		"$__range", model.Duration(to.Sub(from).Truncate(time.Second)).String())
	for _, q := range into.Targets {
		expr := variables.Replace(q.Expr)
		if into.Type == "stat" {
			samples, err := p.query(expr, to)
			if err != nil {
				return err
			}
			for _, x := range samples {
				into.add(q.LegendFormat, x.Metric, []model.SamplePair{{Timestamp: x.Timestamp, Value: x.Value}})
			}
			continue
		}
		streams, err := p.queryRange(expr, from, to)
		if err != nil {
			return err
		}
		slices.SortFunc(streams, func(a, b *model.SampleStream) int { return cmp.Compare(a.Metric.String(), b.Metric.String()) })
		for _, x := range streams {
			into.add(q.LegendFormat, x.Metric, x.Values)
		}
	}
	return nil
}

var legendField = regexp.MustCompile(`{{\s*(\w+)\s*}}`)

func (p *panel) add(format string, labels model.Metric, points []model.SamplePair) {
	points = slices.DeleteFunc(points, func(x model.SamplePair) bool {
		return math.IsNaN(float64(x.Value)) || math.IsInf(float64(x.Value), 0)
	})
	if len(points) == 0 {
		return
	}
	p.series = append(p.series, series{legendField.ReplaceAllStringFunc(format, func(field string) string {
		return string(labels[model.LabelName(legendField.FindStringSubmatch(field)[1])])
	}), points})
}

func (s series) last() float64 { return float64(s.points[len(s.points)-1].Value) }

// units are how values in those of Grafana are written, the least first.
var units = map[string][]struct {
	scale float64
	name  string
}{
	"percentunit": {{0.01, " %"}},
	"bytes":       {{1, " B"}, {1 << 10, " KiB"}, {1 << 20, " MiB"}, {1 << 30, " GiB"}},
	"Bps":         {{1, " B/s"}, {1e3, " kB/s"}, {1e6, " MB/s"}, {1e9, " GB/s"}},
	"s":           {{1, " s"}, {24 * 3600, " days"}},
	"reqps":       {{1, " /s"}},
	"cps":         {{1, " /s"}},
	"none":        {{1, ""}},
}

// unit is the one that a value is best written in.
func (p *panel) unit(v float64) (scale float64, name string) {
	all := units[p.FieldConfig.Defaults.Unit]
	i := len(all) - 1
	for i > 0 && math.Abs(v) < all[i].scale {
		i--
	}
	return all[i].scale, all[i].name
}

func (p *panel) humanize(v float64) string {
	scale, name := p.unit(v)
	return digits(v/scale) + name
}

// digits writes three of them, and all before the point.
func digits(v float64) string {
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
