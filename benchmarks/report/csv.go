package report

import (
	"bytes"
	"encoding/csv"
	"slices"
	"strconv"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// table is results.csv. Its columns are in the package's documentation.
func table(all []result.Record) ([]byte, error) {
	header := []string{
		"scenario", "mode", "round",
		"image", "image_bytes", "image_layers", "image_compressible",
		"nodes", "link_bits_per_second", "registry_link_bits_per_second",
		"bound_seconds", "moved_bytes", "registry_sent_bytes", "origin_bytes",
		"copies", "origin_copies", "slowest_seconds", "cpu_idle",
		"node", "seconds", "fetch_seconds", "sent_bytes", "received_bytes",
	}
	var names []string
	for _, r := range all {
		for _, p := range r.Processes {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, n := range names {
		header = append(header,
			n+"_cpu_seconds", n+"_cpu_seconds_per_gib", n+"_peak_rss_bytes", n+"_peak_heap_bytes", n+"_written_bytes")
	}
	rows := [][]string{header}
	for _, r := range all {
		record := []string{
			r.Scenario, r.Mode, strconv.Itoa(r.Round),
			r.Image.Name, integer(r.Image.Bytes), strconv.Itoa(r.Image.Layers), strconv.FormatBool(r.Image.Compressible),
			strconv.Itoa(r.Nodes), integer(r.Link), integer(r.RegistryLink),
			unlessZero(r.Bound), integer(r.Moved), integer(r.Sent), "",
			float(r.Copies()), "", unlessZero(r.Slowest()), float(r.Idle),
		}
		if r.Origin >= 0 {
			record[13] = integer(r.Origin)
		}
		if c := r.OriginCopies(); c >= 0 {
			record[15] = float(c)
		}
		var processes []string
		for _, n := range names {
			p, ok := r.Process(n)
			if !ok {
				processes = append(processes, "", "", "", "", "")
				continue
			}
			processes = append(processes,
				float(p.CPU), float(p.CPUPerGiB), integer(p.PeakRSS), integer(p.PeakHeap), integer(p.Written))
		}
		for _, p := range r.Pulls {
			node := []string{p.Node, float(p.Seconds), unlessZero(p.Fetch), integer(p.Sent), integer(p.Received)}
			rows = append(rows, slices.Concat(record, node, processes))
		}
		if len(r.Pulls) == 0 {
			rows = append(rows, slices.Concat(record, make([]string, 5), processes))
		}
	}
	var b bytes.Buffer
	if err := csv.NewWriter(&b).WriteAll(rows); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func integer(n int64) string { return strconv.FormatInt(n, 10) }

func float(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// unlessZero is for figures whose zero says that they are not known.
func unlessZero(v float64) string {
	if v == 0 {
		return ""
	}
	return float(v)
}
