package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/e2e/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	nodes, layers, rounds int
	size                  int64
	rate, registryRate    lab.Rate
	modes                 []mode
	shoal                 string
	asJSON, verbose       bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{rate: 100 * lab.Mbit, registryRate: -1}
	fs := flag.NewFlagSet("pull", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.IntVar(&o.nodes, "nodes", 8, "nodes in the cluster")
	size := fs.String("size", "1GiB", "size of the image")
	fs.IntVar(&o.layers, "layers", 1, "layers of the image")
	fs.TextVar(&o.rate, "rate", o.rate, "speed of each node's link, for instance 100mbit; 0 for unshaped")
	registryRate := fs.String("registry-rate", "", "speed of the registry's link (default: as -rate)")
	modes := fs.String("mode", "cold", "what to measure, a list of: direct, perfect, cold, warm")
	fs.IntVar(&o.rounds, "rounds", 1, "how often")
	fs.StringVar(&o.shoal, "shoal", "", "shoal binary (default: built from this source tree)")
	fs.BoolVar(&o.asJSON, "json", false, "print one JSON object per pull instead of text")
	fs.BoolVar(&o.verbose, "v", false, "tell of the steps, and say where the logs are while it runs")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	bytes, err := humanize.ParseBytes(*size)
	if err != nil || bytes > 1<<40 {
		return o, fmt.Errorf("-size %s: want a size like 1GiB or 250MB", *size)
	}
	o.size = int64(bytes)
	o.registryRate = o.rate
	if *registryRate != "" {
		if o.registryRate, err = lab.ParseRate(*registryRate); err != nil {
			return o, fmt.Errorf("-registry-rate: %w", err)
		}
	}
	for name := range strings.SplitSeq(*modes, ",") {
		m := mode(strings.TrimSpace(name))
		if !slices.Contains(allModes, m) {
			return o, fmt.Errorf("-mode %s: want one of %v", name, allModes)
		}
		if m == warm && o.nodes < 2 {
			return o, errors.New("-mode warm: one node has the image, so there must be others")
		}
		o.modes = append(o.modes, m)
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-rounds %d: want at least one", o.rounds)
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	level := zerolog.WarnLevel
	if o.verbose {
		level = zerolog.InfoLevel
	}
	log := zerolog.New(zerolog.ConsoleWriter{Out: stderr}).Level(level).With().Timestamp().Logger()
	if err := lab.Check(); err != nil {
		return err
	}
	if o.shoal == "" && slices.ContainsFunc(o.modes, mode.usesShoal) {
		dir, err := os.MkdirTemp("", "shoal-bench-")
		if err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		defer os.RemoveAll(dir)
		if o.shoal, err = lab.BuildShoal(ctx, dir, false); err != nil {
			return err
		}
	}
	l, err := lab.New(ctx, lab.Config{
		Nodes: o.nodes, Rate: o.rate, RegistryRate: o.registryRate, Memory: true, Shoal: o.shoal, Log: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	// Each node holds the image twice for a while, in Shoal's cache and in
	// containerd's store, and the registry holds it, too.
	log.Info().Msg("touching the memory that the pulls will use")
	ballast, err := lab.NewBallast(ctx, o.size*int64(2*o.nodes+3))
	if err != nil {
		return err
	}
	defer ballast.Close()
	b := bench{lab: l, options: o}
	for round := range o.rounds {
		for _, m := range o.modes {
			r, err := b.measure(ctx, m, round)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, m, err)
			}
			if err := show(stdout, r, o.asJSON); err != nil {
				return err
			}
		}
	}
	return nil
}

// show prints one result.
func show(w io.Writer, r result, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	_, err := io.WriteString(w, r.text())
	return err
}
