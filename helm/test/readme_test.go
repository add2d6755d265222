package chart

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write the chart's README instead of comparing it")

const (
	valuesStart = "<!-- Generated from values.yaml by `make docs`. Do not edit below. -->\n"
	mark        = "# -- "
)

// TestReadme keeps the table of values in step with values.yaml. What is above it
// is written by hand.
func TestReadme(t *testing.T) {
	file := filepath.Join(chartDir, "README.md")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(old), valuesStart)
	if !ok {
		t.Fatalf("%s lacks the line %s", file, valuesStart)
	}
	values, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := valuesTable(values)
	if err != nil {
		t.Fatal(err)
	}
	got := head + valuesStart + "\n" + table
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(old), got); diff != "" {
		t.Errorf("%s is out of date, run 'make docs' (-file +values.yaml):\n%s", file, diff)
	}
}

// valuesTable documents each value that has a comment. One without, in no
// commented one, is an error.
func valuesTable(text []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("| Value | Default | Meaning |\n| --- | --- | --- |\n")
	err := rows(&b, "", doc.Content[0])
	return b.String(), err
}

func rows(b *strings.Builder, prefix string, n *yaml.Node) error {
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := prefix + key.Value
		_, comment, ok := strings.Cut("\n"+key.HeadComment, "\n"+mark)
		switch {
		case ok:
			def, err := compact(value)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, "| `%s` | `%s` | %s |\n", name, def, cell(strings.ReplaceAll(comment, "\n# ", " ")))
		case value.Kind == yaml.MappingNode && len(value.Content) > 0:
			if err := rows(b, name+".", value); err != nil {
				return err
			}
		default:
			return fmt.Errorf("line %d: %s has no comment", key.Line, name)
		}
	}
	return nil
}

// compact is a value as JSON.
func compact(n *yaml.Node) (string, error) {
	var v any
	if err := n.Decode(&v); err != nil {
		return "", err
	}
	j, err := json.Marshal(v)
	return string(j), err
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func TestValuesTable(t *testing.T) {
	for name, tt := range map[string]struct{ values, want, err string }{
		"plain":         {"# -- Says\n# more.\na: 1\n", "| `a` | `1` | Says more. |\n", ""},
		"nested":        {"a:\n  # -- Says.\n  b: x\n", "| `a.b` | `\"x\"` | Says. |\n", ""},
		"as a whole":    {"# -- Says.\na:\n  b: [1]\n", "| `a` | `{\"b\":[1]}` | Says. |\n", ""},
		"silent":        {"a:\n  b: x\n", "", "line 2: a.b has no comment"},
		"other comment": {"# Says.\na: {}\n", "", "a has no comment"},
	} {
		got, err := valuesTable([]byte(tt.values))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", name, err)
			}
		} else if !strings.HasSuffix(got, "| --- | --- | --- |\n"+tt.want) || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
