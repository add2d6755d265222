package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/reference/cli.md instead of comparing it")

const referenceFile = "../../docs/reference/cli.md"

// TestReference keeps the reference in step with the flags.
func TestReference(t *testing.T) {
	var c cli
	p, err := newParser(&c, std{&bytes.Buffer{}, &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	got := reference(p.Model)
	if *update {
		if err := os.WriteFile(referenceFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/reference/cli.md is out of date, run 'make docs' (-file +flags):\n%s", diff)
	}
}

// TestEveryFlagIsExplained: no flag without a help text or, beyond switches,
// a placeholder that says what kind of value it wants.
func TestEveryFlagIsExplained(t *testing.T) {
	var c cli
	p, err := newParser(&c, std{&bytes.Buffer{}, &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range p.Model.Leaves(true) {
		for _, f := range n.Flags {
			if f.Help == "" || !f.IsBool() && f.PlaceHolder == "" {
				t.Errorf("%s --%s: help %q, placeholder %q", n.FullPath(), f.Name, f.Help, f.PlaceHolder)
			}
		}
	}
}

func reference(app *kong.Application) string {
	var b strings.Builder
	b.WriteString("# Command line\n\n<!-- Generated from the flags by `make docs`. Do not edit. -->\n\n")
	b.WriteString(app.Help + "\n")
	for _, n := range app.Leaves(true) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```\n%s\n```\n", n.FullPath(), n.Help, "shoal "+strings.TrimPrefix(n.Summary(), "shoal "))
		if n.Detail != "" {
			b.WriteString("\n" + n.Detail + "\n")
		}
		if len(n.Positional) > 0 {
			b.WriteString("\n| Argument | Meaning |\n| --- | --- |\n")
			for _, p := range n.Positional {
				fmt.Fprintf(&b, "| `%s` | %s |\n", p.Name, cell(p.Help))
			}
		}
		group := "\x00"
		for _, f := range n.Flags {
			title := ""
			if f.Group != nil {
				title = f.Group.Title
			}
			if title != group {
				group = title
				b.WriteString("\n")
				if title != "" {
					b.WriteString("**" + title + "**\n\n")
				}
				b.WriteString("| Flag | Environment | Meaning |\n| --- | --- | --- |\n")
			}
			name := "--" + f.Name
			if !f.IsBool() {
				name += " " + f.PlaceHolder
			}
			env := ""
			if len(f.Envs) > 0 {
				env = "`" + f.Envs[0] + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, env, cell(f.Help))
		}
	}
	fmt.Fprintf(&b, "\n## Registries mirrored by default\n\n`shoal serve` mirrors these unless `--registry` says otherwise; a star does not match addresses:\n\n")
	for _, r := range strings.Split(publicRegistries, ",") {
		fmt.Fprintf(&b, "- `%s`\n", r)
	}
	return b.String()
}

// cell escapes what ends a table's cell.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
