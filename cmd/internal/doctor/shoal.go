package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 8 << 20

// shoal is what this node's Shoal says of itself.
type shoal struct {
	err     error // it could not be asked
	ready   bool
	missing []string // what keeps it from being ready
	metrics metrics
}

// metrics are samples, summed up over labels, and by themselves with their labels
// as name{label="value"}.
type metrics map[string]float64

func readShoal(ctx context.Context, e *Env) shoal {
	if e.Metrics == "" {
		return shoal{err: errors.New("metrics-addr is empty")}
	}
	var s shoal
	answer, err := get(ctx, e.Metrics+"/readyz")
	if err != nil {
		return shoal{err: err}
	}
	var ready struct {
		Ready  bool
		Checks map[string]string
	}
	if err := json.Unmarshal(answer, &ready); err != nil {
		return shoal{err: fmt.Errorf("GET %s/readyz: %w", e.Metrics, err)}
	}
	s.ready = ready.Ready
	for _, name := range slices.Sorted(maps.Keys(ready.Checks)) {
		if ready.Checks[name] != "ok" {
			s.missing = append(s.missing, name+": "+ready.Checks[name])
		}
	}
	s.metrics, s.err = readMetrics(ctx, e)
	return s
}

func readMetrics(ctx context.Context, e *Env) (metrics, error) {
	answer, err := get(ctx, e.Metrics+"/metrics")
	if err != nil {
		return nil, err
	}
	dec := &expfmt.SampleDecoder{
		Dec:  expfmt.NewDecoder(strings.NewReader(string(answer)), expfmt.NewFormat(expfmt.TypeTextPlain)),
		Opts: &expfmt.DecodeOptions{},
	}
	m := metrics{}
	for {
		var samples model.Vector
		switch err := dec.Decode(&samples); {
		case errors.Is(err, io.EOF):
			return m, nil
		case err != nil:
			return nil, fmt.Errorf("read %s/metrics: %w", e.Metrics, err)
		}
		for _, s := range samples {
			m[string(s.Metric[model.MetricNameLabel])] += float64(s.Value)
			if len(s.Metric) > 1 {
				m[s.Metric.String()] += float64(s.Value)
			}
		}
	}
}

// get reads an answer of something on this node, whatever its status.
func get(ctx context.Context, location string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client(askTimeout).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
}

// checkShoal looks whether Shoal runs here, and answers.
func checkShoal(ctx context.Context, e *Env, s shoal) []Finding {
	var all []Finding
	if answer, err := get(ctx, e.Mirror+"/v2/"); err != nil {
		all = append(all, Finding{
			ID: "mirror-silent", Severity: Error, Title: "the mirror does not answer",
			Evidence:    []string{err.Error()},
			Consequence: "containerd asks the registries itself: at once if it is refused, after 30 s for each object if nothing answers",
			Fix:         "is 'shoal serve' running, and is --mirror-addr what hosts.toml names? In Kubernetes: does the CNI support hostPort (or set hostNetwork=true)?",
		})
	} else if strings.TrimSpace(string(answer)) != "{}" {
		all = append(all, Finding{
			ID: "mirror-foreign", Severity: Error, Title: "something else answers at the mirror's address",
			Evidence:    []string{fmt.Sprintf("GET %s/v2/: %.80q", e.Mirror, answer)},
			Consequence: "containerd asks it for images, and gets what it has to say",
			Fix:         "find what listens there ('ss -ltnp'), and give one of them another port (--mirror-addr, and 'shoal configure --mirror')",
		})
	}
	switch {
	case s.err != nil:
		all = append(all, Finding{
			ID: "not-examined", Severity: Note, Title: "Shoal's own view was not examined",
			Evidence:    []string{s.err.Error()},
			Consequence: "nothing is known of members, cache and fallbacks",
			Fix:         "give --metrics URL, or the --config that 'shoal serve' has",
		})
	case !s.ready:
		all = append(all, Finding{
			ID: "not-ready", Severity: Error, Title: "Shoal is not ready", Evidence: s.missing,
			Consequence: "pulls may work, but other nodes do not get what this one holds",
			Fix:         "wait if it has just been started; otherwise see what its log says of these",
		})
	}
	return all
}
