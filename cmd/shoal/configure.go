package main

import (
	"context"
	"fmt"
	"time"

	"github.com/shoal-dev/shoal/mirror/containerd/hosts"
)

// configureCmd makes containerd ask the mirror.
type configureCmd struct {
	Registries []string `arg:"" optional:"" name:"registry" help:"Registries to mirror, as image names spell them. Default: all, which is _default and every registry that has a directory."`
	HostsDir   string   `placeholder:"DIR" help:"containerd's config_path, with a directory for each registry. Default: where this node's distribution has it."`
	Mirror     string   `default:"http://127.0.0.1:6500" placeholder:"URL" help:"The mirror that containerd is to ask first, on a loopback address. Default: ${default}."`
	Watch      bool     `env:"-" help:"Stay, and configure again what others overwrite."`
}

// watchInterval is how often --watch looks without having been told of a change,
// as a distribution does at a restart behind a link. A look costs some reads of
// small files.
const watchInterval = time.Minute

// Help implements kong.HelpProvider.
func (*configureCmd) Help() string {
	return `Puts the mirror into hosts.toml as the first host, as a block of its own. Everything else in a file stays as it is; the file as it was is kept beside it once, as hosts.toml.shoal-backup. Running it again changes nothing. containerd reads the files at each pull and is not restarted; registries that the mirror does not serve cost it one question more. Its config.toml is not touched: config_path there has to be exactly this directory.

If a file cannot be read, parsed or written, the error tells which and where, and nothing is changed. With --watch, such a file is left alone until it has been corrected, and the others are kept configured.

Exit status: 0 on success, and when --watch is told to stop; 1 on failure; 2 for a mistake in the arguments.`
}

// Run implements the command.
func (c *configureCmd) Run(ctx context.Context, s std) error {
	dir, err := hostsDir(c.HostsDir)
	if err != nil {
		return err
	}
	cfg := hosts.Config{Dir: dir, Mirror: c.Mirror, Registries: c.Registries}
	if err := cfg.Validate(); err != nil {
		return usageError{err}
	}
	if c.Watch {
		log, err := newLogger(s.err, "info", "auto")
		if err != nil {
			return err
		}
		return hosts.Watch(ctx, cfg, watchInterval, log)
	}
	changes, err := hosts.Configure(cfg)
	tellChanges(s, changes)
	return err
}

// hostsDir is the directory given, or else this node's.
func hostsDir(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	l, err := hosts.Find("/")
	if err != nil {
		return "", fmt.Errorf("%w: say with --hosts-dir which it is", err)
	}
	return l.Hosts, nil
}

func tellChanges(s std, changes []hosts.Change) {
	for _, c := range changes {
		fmt.Fprintf(s.out, "%s: %s\n", c.Path, c.Outcome)
		if c.Backup != "" {
			fmt.Fprintf(s.out, "%s: left, for the file has been edited since\n", c.Backup)
		}
	}
}
