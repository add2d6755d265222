package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

// versionCmd tells the version.
type versionCmd struct {
	Output string `env:"-" enum:"text,json" default:"text" placeholder:"FORMAT" help:"Form of the output: ${enum}. Default: ${default}."`
}

// versionInfo is what the toolchain has recorded about this build.
type versionInfo struct {
	// Version is the module's: a tag, or a pseudo-version of the commit.
	Version string `json:"version"`
	// Commit is empty for builds outside of a repository.
	Commit string `json:"commit,omitempty"`
	// Date is the commit's.
	Date     string `json:"date,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readVersion() versionInfo {
	v := versionInfo{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if b.Main.Version != "" && b.Main.Version != "(devel)" {
		v.Version = b.Main.Version
	}
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.Date = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// Run implements the command.
func (c *versionCmd) Run(s std) error {
	v := readVersion()
	if c.Output == "json" {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	fmt.Fprintf(s.out, "shoal %s (%s, %s)\n", v.Version, v.Go, v.Platform)
	if v.Commit != "" {
		modified := ""
		if v.Modified {
			modified = ", modified"
		}
		fmt.Fprintf(s.out, "commit %s of %s%s\n", v.Commit, v.Date, modified)
	}
	return nil
}
