package report

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// Write makes a report of records in dir, which it creates if it is not there.
// Command is what measured them.
//
// Files are replaced whole, report.md after everything that it links to. One that
// has the right content already is not touched, so records may be appended to
// results.jsonl of the same directory while they are measured. Plots of an
// earlier report that this one lacks are left.
func Write(dir, title, command string, all []result.Record) error {
	if err := write(dir, title, command, all); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func write(dir, title, command string, all []result.Record) error {
	if len(all) == 0 {
		return errors.New("no results")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var lines bytes.Buffer
	for _, r := range all {
		if err := result.Write(&lines, r); err != nil {
			return err
		}
	}
	if err := replace(filepath.Join(dir, "results.jsonl"), lines.Bytes()); err != nil {
		return err
	}
	table, err := table(all)
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, "results.csv"), table); err != nil {
		return err
	}
	plots := plots(all)
	for _, p := range plots {
		svg, err := p.svg()
		if err != nil {
			return fmt.Errorf("plot %s: %w", p.file, err)
		}
		if err := replace(filepath.Join(dir, p.file), svg); err != nil {
			return err
		}
	}
	return replace(filepath.Join(dir, "report.md"), markdown(title, command, all, plots))
}

// replace writes a file in one step, unless it has the content already.
func replace(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".report-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// setting is a key whose mode is empty: what the modes that are compared have in
// common.
type setting = result.Key

// settingOf a record.
func settingOf(r result.Record) setting {
	k := r.Key()
	k.Mode = ""
	return k
}

// group is the records that are equal in something, in their order.
type group[K comparable] struct {
	key     K
	records []result.Record
}

// groups are in the order in which their keys appear.
func groups[K comparable](all []result.Record, key func(result.Record) K) []group[K] {
	var out []group[K]
	for _, r := range all {
		k := key(r)
		i := slices.IndexFunc(out, func(g group[K]) bool { return g.key == k })
		if i < 0 {
			i = len(out)
			out = append(out, group[K]{key: k})
		}
		out[i].records = append(out[i].records, r)
	}
	return out
}

func scenarioOf(r result.Record) string { return r.Scenario }
func modeOf(r result.Record) string     { return r.Mode }
