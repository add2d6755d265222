package main

import (
	"context"
	"errors"

	"github.com/shoal-dev/shoal/cmd/internal/node"
	"github.com/shoal-dev/shoal/mirror/containerd/hosts"
)

// unconfigureCmd is the reverse of configure.
type unconfigureCmd struct {
	HostsDir string `placeholder:"DIR" help:"containerd's config_path, as for 'shoal configure'. Default: where this node's distribution has it."`
	DataDir  string `env:"-" placeholder:"DIR" help:"Also remove what 'shoal serve' keeps in this directory, and the directory if nothing else is in it. Default: leave it."`
	Watch    bool   `env:"-" help:"Stay, and take out again what others put back."`
}

// Help implements kong.HelpProvider.
func (*unconfigureCmd) Help() string {
	return `Takes out of all registries what 'shoal configure' put in, whatever was edited around it meanwhile. Files and directories that it made are removed, unless something else is in them. Stop 'shoal configure --watch' first.

If a file cannot be read, parsed or written, the error tells which and where, and nothing is changed. With --watch it is told once and tried again.

Exit status: 0 on success, also if there was nothing to do, and when --watch is told to stop; 1 on failure; 2 for a mistake in the arguments.`
}

// Run implements the command.
func (c *unconfigureCmd) Run(ctx context.Context, s std) error {
	if c.Watch && c.DataDir != "" {
		return usageError{errors.New("--data-dir and --watch exclude each other: what is removed does not come back by itself")}
	}
	dir, err := hostsDir(c.HostsDir)
	if err != nil {
		return err
	}
	if c.Watch {
		log, err := newLogger(s.err, "info", "auto")
		if err != nil {
			return err
		}
		hosts.WatchRemoval(ctx, dir, watchInterval, log)
		return nil
	}
	changes, err := hosts.Unconfigure(dir)
	tellChanges(s, changes)
	if err != nil || c.DataDir == "" {
		return err
	}
	return node.RemoveData(c.DataDir)
}
