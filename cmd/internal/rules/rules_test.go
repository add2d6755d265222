package rules

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	module = "github.com/shoal-dev/shoal"
	root   = "../../.."
	// maxLines is how long a file may be before it has two ideas in it. Tests
	// are exempt: tables are long.
	maxLines = 500
)

// source is one Go file of the module, or of the programs that its tests
// build.
type source struct {
	path string // from the root, with slashes
	text []byte
	file *ast.File
}

func (s source) dir() string     { return path.Dir(s.path) }
func (s source) isTest() bool    { return strings.HasSuffix(s.path, "_test.go") }
func (s source) generated() bool { return ast.IsGenerated(s.file) }

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if n := e.Name(); p != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an editor's temporary file
		}
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(rel), text, f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("found %d Go files under %s: looking in the wrong place", len(all), root)
	}
	return all
}

// layers are the folders of the top level, the lowest first. A file imports
// packages of its own layer and of those below.
var layers = []string{"chunker", "swarm", "mirror", "cmd"}

// TestImportsFlowDownwards holds for tests too: a test that needs a layer
// TestImportsFlowDownwards holds for tests too: a test that needs a layer above
// is a test of that layer. Only the laboratory may be used from anywhere.
func TestImportsFlowDownwards(t *testing.T) {
	level := func(p string) int { return slices.Index(layers, strings.Split(p, "/")[0]) }
	for _, s := range sources(t) {
		from := level(s.path)
		if from < 0 {
			continue // e2e and benchmarks stand outside
		}
		for _, i := range s.file.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			rest, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				continue
			}
			switch to := level(rest); {
			case to < 0 && !s.isTest():
				t.Errorf("%s imports %s, which is for tests and measurements only", s.path, p)
			case to > from:
				t.Errorf("%s imports %s: imports flow cmd -> mirror -> swarm -> chunker", s.path, p)
			}
		}
	}
}

// TestBitTorrentStaysInTheEngine keeps the library replaceable.
func TestBitTorrentStaysInTheEngine(t *testing.T) {
	for _, s := range sources(t) {
		if s.isTest() || s.dir() == "swarm/engine" {
			continue
		}
		for _, i := range s.file.Imports {
			if strings.HasPrefix(i.Path.Value, `"github.com/anacrolix/`) {
				t.Errorf("%s imports %s, which only swarm/engine may", s.path, i.Path.Value)
			}
		}
	}
}

func TestTopLevel(t *testing.T) {
	allowed := []string{
		"cmd", "mirror", "swarm", "chunker", "helm", "benchmarks", "docs", "e2e",
		"go.mod", "go.sum", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE",
		"bin",
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s at the top level: folders are the architecture, new ones need a reason", e.Name())
		}
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	docs := map[string]string{}
	for _, s := range sources(t) {
		if s.isTest() || s.generated() {
			continue
		}
		docs[s.dir()] += s.file.Doc.Text()
	}
	for dir, doc := range docs {
		if len(doc) < 100 {
			t.Errorf("%s: the package comment is missing, or too short to explain anything: %q", dir, doc)
		}
	}
}

func TestFilesFitInAHead(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !s.isTest() && !s.generated() {
			t.Errorf("%s has %d lines, more than %d: it has two ideas in it", s.path, n, maxLines)
		}
	}
}

func TestNoCatchAllPackages(t *testing.T) {
	for _, s := range sources(t) {
		switch s.file.Name.Name {
		case "util", "utils", "common", "helpers", "misc", "lib", "shared", "types":
			t.Errorf("%s: package %s says nothing about what is in it", s.path, s.file.Name.Name)
		}
	}
}

var metricName = regexp.MustCompile(`\bshoal_[a-z0-9_]+\b`)

// TestMetricsAreDocumented compares the metrics in the code with those in
// docs/reference/metrics.md, both ways.
func TestMetricsAreDocumented(t *testing.T) {
	inCode := map[string]string{}
	for _, s := range sources(t) {
		if s.isTest() || strings.HasPrefix(s.path, "e2e/") || strings.HasPrefix(s.path, "benchmarks/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			kv, ok := n.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			key, _ := kv.Key.(*ast.Ident)
			value, _ := kv.Value.(*ast.BasicLit)
			if key == nil || value == nil || key.Name != "Name" || value.Kind != token.STRING {
				return true
			}
			if name, err := strconv.Unquote(value.Value); err == nil && strings.HasPrefix(name, "shoal_") {
				inCode[name] = s.path
				if path.Base(s.path) != "metrics.go" {
					t.Errorf("%s is declared in %s: metrics live in metrics.go", name, s.path)
				}
			}
			return true
		})
	}
	if len(inCode) < 20 {
		t.Fatalf("found %d metrics in the code: looking for them in the wrong way", len(inCode))
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/reference/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	inDocs := map[string]bool{}
	for _, m := range metricName.FindAllString(string(text), -1) {
		inDocs[m] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(inCode)), slices.Sorted(maps.Keys(inDocs))); diff != "" {
		t.Errorf("docs/reference/metrics.md (-code +docs):\n%s", diff)
	}
}

// TestMetricsUsedElsewhereExist: tests, benchmarks, charts and dashboards name
// only metrics that there are.
func TestMetricsUsedElsewhereExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/reference/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range metricName.FindAllString(string(text), -1) {
		known[m] = true
	}
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, s := range sources(t) {
		if s.isTest() && s.dir() != "e2e" {
			continue // unit tests make metrics up
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				for _, m := range metricName.FindAllString(lit.Value, -1) {
					if !known[m] && !known[suffix.ReplaceAllString(m, "")] {
						t.Errorf("%s uses the metric %s, which does not exist", s.path, m)
					}
				}
			}
			return true
		})
	}
	for _, dir := range []string{"helm", "docs"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if filepath.Ext(p) == ".csv" {
				return nil // results, with columns of their own
			}
			text, err := os.ReadFile(p)
			for _, m := range metricName.FindAllString(string(text), -1) {
				if !known[m] && !known[suffix.ReplaceAllString(m, "")] {
					t.Errorf("%s uses the metric %s, which does not exist", p, m)
				}
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// requirement finds the version of a module that a go.mod requires.
func requirement(t *testing.T, gomod, mod string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, gomod))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(mod) + ` (v\S+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s does not require %s", gomod, mod)
	}
	return string(m[1])
}

// TestTestedVersions: the programs that the end-to-end tests build are those
// whose libraries are in use.
func TestTestedVersions(t *testing.T) {
	for _, c := range []struct{ mod, program, library string }{
		{"github.com/containerd/containerd/v2", "e2e/programs/containerd/go.mod", "go.mod"},
		{"github.com/distribution/distribution/v3", "e2e/programs/registry/go.mod", "go.mod"},
		{"github.com/cert-manager/cert-manager", "e2e/programs/cert-manager/go.mod", "helm/test/go.mod"},
	} {
		if got, want := requirement(t, c.program, c.mod), requirement(t, c.library, c.mod); got != want {
			t.Errorf("%s requires %s %s, %s %s", c.program, c.mod, got, c.library, want)
		}
	}
}

// TestPinnedVersions: these are measured or known to work, and their
// neighbours are not; raising one is a decision (docs/adr).
func TestPinnedVersions(t *testing.T) {
	for mod, want := range map[string]string{
		"github.com/anacrolix/torrent": "v1.61.0", // v1.62.0 does not build from the module proxy
	} {
		if got := requirement(t, "go.mod", mod); got != want {
			t.Errorf("%s is %s, want %s", mod, got, want)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinks: what the documents point to exists.
func TestLinks(t *testing.T) {
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && p != root {
			return fs.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(p, ".md") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMakeHelp: every target that people call is in `make help`.
func TestMakeHelp(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\.PHONY: (\S+)$`).FindAllSubmatch(text, -1) {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^%s:.* ## \S`, m[1])).Match(text) {
			t.Errorf("target %s has no '## description'", m[1])
		}
	}
}
