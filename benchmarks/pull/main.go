package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/benchmarks/report"
	"github.com/shoal-dev/shoal/benchmarks/result"
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
	clusters           []int // sizes
	images             []result.Image
	scenarios          []scenario
	modes              []string
	rounds             int
	rate, registryRate lab.Rate
	stagger            time.Duration
	shoal              string
	out                string
	asJSON, verbose    bool

	// report: measure nothing, bring the runs of these files together.
	report         bool
	reports        []string
	title, command string

	otherName, otherCommand, otherHosts, otherReady string

	// nodes is the size of the cluster at hand.
	nodes int
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{rate: 100 * lab.Mbit}
	fs := flag.NewFlagSet("pull", flag.ContinueOnError)
	fs.SetOutput(stderr)
	nodes := fs.String("nodes", "8", "nodes in the cluster; several sizes, separated by commas, one after the other")
	images := fs.String("image", "1GB-1", "images to pull, a list of SIZE-LAYERS, like 10MB-1,100MB-4,1GB-4; with -c at the end the content can be compressed")
	scenarioList := fs.String("scenario", "cold", "what happens, a list of: cold, warm, rolling, upgrade, churn, alone, pair")
	modes := fs.String("mode", "perfect,shoal", "who serves, a list of: "+strings.Join(allModes, ", "))
	fs.IntVar(&o.rounds, "rounds", 1, "how often")
	fs.TextVar(&o.rate, "rate", o.rate, "speed of each node's link, for instance 100mbit; 0 for unshaped")
	registryRate := fs.String("registry-rate", "", "speed of the registry's link (default: as -rate)")
	fs.DurationVar(&o.stagger, "stagger", 2*time.Second, "time between the starts of two nodes in scenario rolling")
	fs.StringVar(&o.shoal, "shoal", "", "shoal binary (default: built from this source tree)")
	fs.StringVar(&o.out, "out", "", "directory for results.jsonl, written as it goes, and for the report at the end")
	fs.BoolVar(&o.report, "report", false, "measure nothing: make one report in -out of the results.jsonl files that are named as arguments")
	fs.StringVar(&o.title, "title", "Pull times", "title of the report of -report")
	fs.StringVar(&o.command, "command", "", "what -report says the runs were made with")
	fs.BoolVar(&o.asJSON, "json", false, "print one JSON object per pull instead of text")
	fs.BoolVar(&o.verbose, "v", false, "tell of the steps, and say where the logs are while it runs")
	fs.StringVar(&o.otherName, "other-name", "other", "what to call the mirror of mode other in results")
	fs.StringVar(&o.otherCommand, "other-command", "", "template of the command that runs it on a node")
	fs.StringVar(&o.otherHosts, "other-hosts", "", "file with the template of hosts.toml for it")
	fs.StringVar(&o.otherReady, "other-ready", "", "template of a URL that answers when it is ready")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.reports = fs.Args(); len(o.reports) > 0 && !o.report {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.report && len(o.reports) == 0 {
		return o, errors.New("-report: name the results.jsonl files of the runs")
	}
	for s := range items(*nodes) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return o, fmt.Errorf("-nodes %q: want a number of nodes", s)
		}
		o.clusters = append(o.clusters, n)
	}
	for s := range items(*images) {
		img, err := parseImage(s)
		if err != nil {
			return o, fmt.Errorf("-image: %w", err)
		}
		o.images = append(o.images, img)
	}
	for s := range items(*scenarioList) {
		sc, err := scenarioOf(s)
		if err != nil {
			return o, fmt.Errorf("-scenario: %w", err)
		}
		if n := slices.Min(o.clusters); n < sc.least {
			return o, fmt.Errorf("-scenario %s: needs %d nodes, -nodes says %d", s, sc.least, n)
		}
		if sc.kills && o.rate == 0 {
			return o, fmt.Errorf("-scenario %s: half of the time that unshaped links need is not known, give a -rate", s)
		}
		o.scenarios = append(o.scenarios, sc)
	}
	for s := range items(*modes) {
		if !slices.Contains(allModes, s) {
			return o, fmt.Errorf("-mode %s: want one of %v", s, allModes)
		}
		if s == other && (o.otherCommand == "" || o.otherHosts == "") {
			return o, errors.New("-mode other: say what it is with -other-command and -other-hosts")
		}
		o.modes = append(o.modes, s)
	}
	o.registryRate = o.rate
	if *registryRate != "" {
		var err error
		if o.registryRate, err = lab.ParseRate(*registryRate); err != nil {
			return o, fmt.Errorf("-registry-rate: %w", err)
		}
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-rounds %d: want at least one", o.rounds)
	}
	return o, nil
}

// items are the parts of a list.
func items(list string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for s := range strings.SplitSeq(list, ",") {
			if !yield(strings.TrimSpace(s)) {
				return
			}
		}
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.report {
		return rewrite(o, o.reports)
	}
	if err := lab.Check(); err != nil {
		return err
	}
	level := zerolog.WarnLevel
	if o.verbose {
		level = zerolog.InfoLevel
	}
	log := zerolog.New(zerolog.ConsoleWriter{Out: stderr}).Level(level).With().Timestamp().Logger()
	var all []result.Record
	keep := func(r result.Record) error {
		all = append(all, r)
		return show(stdout, r, o.asJSON)
	}
	if o.out != "" {
		f, err := openResults(o.out)
		if err != nil {
			return err
		}
		defer f.Close()
		shown := keep
		keep = func(r result.Record) error { return errors.Join(result.Write(f, r), shown(r)) }
	}
	for _, o.nodes = range o.clusters {
		if err = runCluster(ctx, o, log, keep); err != nil {
			break
		}
	}
	if len(all) == 0 {
		return err
	}
	// What was measured before an error, or Ctrl-C, is worth a report, too.
	if o.out != "" {
		err = errors.Join(err, report.Write(o.out, "Pull times", command(args), all))
	}
	if !o.asJSON {
		err = errors.Join(err, summarize(stdout, all))
	}
	return err
}

// command is how to measure the same again.
func command(args []string) string {
	var b strings.Builder
	b.WriteString("go run ./benchmarks/pull")
	for _, a := range args {
		if strings.ContainsAny(a, " \t\n\"'$&|;<>(){}*?#\\`") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		b.WriteByte(' ')
		b.WriteString(a)
	}
	return b.String()
}

// rewrite makes a report of earlier runs.
func rewrite(o options, paths []string) error {
	if o.out == "" {
		return errors.New("-report: say with -out where the report goes")
	}
	all, err := result.ReadFiles(paths...)
	if err != nil {
		return err
	}
	return report.Write(o.out, o.title, o.command, all)
}

// openResults makes a new file in dir, which must not hold one.
func openResults(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("-out: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "results.jsonl"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("-out: %w: take another directory, or move it away", err)
	}
	return f, nil
}

// runCluster measures everything in a cluster of one size.
func runCluster(ctx context.Context, o options, log zerolog.Logger, keep func(result.Record) error) (err error) {
	l, err := lab.New(ctx, lab.Config{
		Nodes: o.nodes, Rate: o.rate, RegistryRate: o.registryRate, Memory: true, Log: log,
		Shoal: o.shoal, BuildShoal: slices.Contains(o.modes, result.Shoal),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	// Each node holds the image twice for a while, in Shoal's cache and in
	// containerd's store, and the registry holds it, too. An upgrade has two.
	var largest int64
	for _, img := range o.images {
		largest = max(largest, img.Bytes)
	}
	log.Info().Msg("touching the memory that the pulls will use")
	ballast, err := lab.NewBallast(ctx, largest*int64(2*o.nodes+3))
	if err != nil {
		return err
	}
	defer ballast.Close()
	b := bench{lab: l, options: o}
	if slices.Contains(o.modes, other) {
		if b.rival, err = startRival(ctx, l, o); err != nil {
			return err
		}
	}
	for round := 1; round <= o.rounds; round++ {
		for _, s := range o.scenarios {
			for _, img := range o.images {
				for _, mode := range o.modes {
					r, err := b.measure(ctx, s, img, mode, round)
					if err != nil {
						return fmt.Errorf("round %d, %s, %s, %s: %w", round, s.name, img.Name, mode, err)
					}
					if mode == other {
						r.Mode = o.otherName
					}
					if err := keep(r); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
