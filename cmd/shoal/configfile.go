package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	kongyaml "github.com/alecthomas/kong-yaml"
	"gopkg.in/yaml.v3"
)

// configFile resolves flags from a YAML file whose keys are their names. It
// goes beyond the resolver of kong-yaml in two ways: a key that means nothing
// is an error, since a misspelled setting that is silently ignored costs an
// evening; and the environment comes first, as with the flags' defaults.
type configFile struct {
	yaml kong.Resolver
}

func loadConfig(path string, command *kong.Node) (kong.Resolver, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	settings := map[string]any{}
	if err := yaml.NewDecoder(bytes.NewReader(p)).Decode(&settings); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	known := map[string]bool{}
	for _, f := range command.Flags {
		known[f.Name] = f.Name != "config" && f.Name != "help"
	}
	for key, v := range settings {
		if !known[key] {
			return nil, fmt.Errorf("read configuration %s: unknown setting %q%s", path, key, suggest(key, known))
		}
		if settings[key], err = plain(v); err != nil {
			return nil, fmt.Errorf("read configuration %s: %s: %w", path, key, err)
		}
	}
	if p, err = yaml.Marshal(settings); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	r, err := kongyaml.Loader(bytes.NewReader(p))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return &configFile{yaml: r}, nil
}

// Validate implements kong.Resolver; loadConfig has looked already.
func (*configFile) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver.
func (c *configFile) Resolve(k *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil
		}
	}
	if parent.Command == nil {
		return nil, nil // a global flag: --help
	}
	// kong-yaml looks for a command's flags below the command's name; the
	// file is for one command, so its keys are at the top.
	return c.yaml.Resolve(k, &kong.Path{App: k.Model}, flag)
}

// plain brings a value into the form that flags are parsed from: scalars as
// they would stand on the command line, lists and maps of those.
func plain(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string, bool:
		return v, nil
	case int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			var err error
			if out[i], err = scalar(e); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			var err error
			if out[k], err = scalar(e); err != nil {
				return nil, err
			}
		}
		return out, nil
	default:
		return nil, fmt.Errorf("unexpected value %v", v)
	}
}

func scalar(v any) (any, error) {
	switch v.(type) {
	case string, bool, int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	}
	return nil, fmt.Errorf("want a plain value, got %v", v)
}

// suggest names the setting that was probably meant.
func suggest(key string, known map[string]bool) string {
	normal := func(s string) string {
		return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
	}
	var near []string
	for k, ok := range known {
		if a, b := normal(key), normal(k); ok && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)) {
			near = append(near, k)
		}
	}
	if len(near) == 0 {
		return "; 'shoal serve --help' lists them"
	}
	slices.Sort(near)
	return ", did you mean " + strings.Join(near, " or ") + "?"
}
