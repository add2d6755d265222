package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/shoal-dev/shoal/swarm/picker"
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	nodes     []int
	scenarios []string
	seeds     int
	asJSON    bool
	svg       string
	config    config
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{}
	c := &o.config
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(stderr)
	nodes := fs.String("nodes", "10,20,50,100,200,500,1000", "how many nodes, a list")
	scenario := fs.String("scenario", "cold", "what happens, a list of: "+scenarioNames())
	size := fs.String("size", "256MiB", "size of the blob")
	rate := fs.Float64("rate", 1000, "speed of each node's link, in Mbit/s")
	registryRate := fs.Float64("registry-rate", 0, "speed of the registry's link, in Mbit/s (default: as -rate)")
	fs.Uint64Var(&c.Seed, "seed", 1, "of all random choices")
	fs.IntVar(&o.seeds, "seeds", 1, "how many runs with different seeds")
	fs.DurationVar(&c.Latency, "latency", 500*time.Microsecond, "one way, between two nodes")
	fs.DurationVar(&c.ControlLatency, "control-latency", 2*time.Millisecond, "one way, between a node and the tracker")
	fs.DurationVar(&c.RegistryLatency, "registry-latency", 20*time.Millisecond, "to a lease's first byte")
	fs.Int64Var(&c.Chunk, "chunk", 128<<10, "bytes that a link sends of one stream at a time")
	fs.Int64Var(&c.Inflight, "inflight", 256<<10, "bytes of one stream that may be on their way")
	fs.IntVar(&c.Slots, "slots", picker.Slots, "to how many peers a node sends at a time; 0: all that asked")
	fs.BoolVar(&c.SlowFirst, "slow-first", true, "a slot goes to who gets pieces most slowly, not to who waited longest")
	fs.Float64Var(&c.Pace, "pace", 1, "multiplies how long messages to and from the tracker are collected")
	fs.DurationVar(&c.Look, "look", 100*time.Millisecond, "how often a node looks for late peers")
	fs.IntVar(&c.MaxNews, "max-news", picker.MaxNews, "of how many pieces news wait at most")
	fs.DurationVar(&c.Linger, "linger", 0, "how long news of a piece wait before they are sent (default picker.Linger)")
	fs.DurationVar(&c.Tuning.Ahead, "ahead", 0, "picker: see picker.Tuning, as for the following")
	fs.Int64Var(&c.Tuning.MinAhead, "min-ahead", 0, "picker")
	fs.Int64Var(&c.Tuning.MaxAhead, "max-ahead", 0, "picker")
	fs.Float64Var(&c.Tuning.Rare, "rare", 0, "picker")
	fs.IntVar(&c.Tuning.Window, "window", 0, "picker")
	fs.DurationVar(&c.Tuning.Late, "late", 0, "picker")
	fs.IntVar(&c.Params.MaxPeers, "peers", 0, "tracker: see tracker.Params, as for the following")
	fs.IntVar(&c.Params.OriginStreams, "origin-streams", 0, "tracker")
	fs.Int64Var(&c.Params.LeaseMin, "lease-min", 0, "tracker")
	fs.Int64Var(&c.Params.LeaseMax, "lease-max", 0, "tracker")
	fs.DurationVar(&c.Params.LeaseTime, "lease-time", 0, "tracker")
	fs.DurationVar(&c.Every, "every", 200*time.Millisecond, "time between two joins (rolling)")
	fs.IntVar(&c.Holders, "holders", 1, "how many have the blob (warm)")
	fs.Float64Var(&c.Slow, "slow", 0.25, "share of the nodes that is slow (uneven)")
	fs.Float64Var(&c.SlowBy, "slow-by", 4, "how much slower (uneven)")
	fs.Float64Var(&c.Churn, "churn", 0.1, "share of the nodes that dies (churn)")
	fs.DurationVar(&c.Notice, "notice", 6*time.Second, "until the others know that a node died (churn)")
	fs.BoolVar(&o.asJSON, "json", false, "print one JSON object per run instead of a table")
	fs.StringVar(&o.svg, "svg", "", "directory for plots")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	for s := range strings.SplitSeq(*nodes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 {
			return o, fmt.Errorf("-nodes %s: want numbers above 0", s)
		}
		o.nodes = append(o.nodes, n)
	}
	for s := range strings.SplitSeq(*scenario, ",") {
		s = strings.TrimSpace(s)
		if scenarios[s] == nil {
			return o, fmt.Errorf("-scenario %s: want one of %s", s, scenarioNames())
		}
		o.scenarios = append(o.scenarios, s)
	}
	bytes, err := humanize.ParseBytes(*size)
	if err != nil || bytes < 1 || bytes > 1<<40 {
		return o, fmt.Errorf("-size %s: want a size like 1GiB or 250MB", *size)
	}
	c.Size = int64(bytes)
	if *registryRate == 0 {
		*registryRate = *rate
	}
	if *rate <= 0 || *registryRate <= 0 {
		return o, errors.New("-rate and -registry-rate: want rates above 0")
	}
	if c.Slow < 0 || c.Slow > 1 || c.Churn < 0 || c.Churn > 1 {
		return o, errors.New("-slow and -churn: want shares between 0 and 1")
	}
	if c.SlowBy < 1 || c.Chunk < 1 || c.Inflight < 1 || c.Pace < 0 || c.Look <= 0 || c.Holders < 1 || o.seeds < 1 {
		return o, errors.New("-slow-by, -chunk, -inflight, -pace, -look, -holders and -seeds: want more")
	}
	c.Rate, c.RegistryRate = *rate*1e6/8, *registryRate*1e6/8
	return o, nil
}

func run(args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if !o.asJSON {
		fmt.Fprintln(stdout, header)
	}
	var all []result
	for _, s := range o.scenarios {
		for _, n := range o.nodes {
			for k := range o.seeds {
				c := o.config
				c.Scenario, c.Nodes = s, n
				c.Seed += uint64(k)
				r, err := simulate(c)
				if err != nil {
					return err
				}
				all = append(all, r)
				if o.asJSON {
					err = json.NewEncoder(stdout).Encode(r)
				} else {
					_, err = fmt.Fprintln(stdout, r.row())
				}
				if err != nil {
					return err
				}
			}
		}
	}
	if o.svg != "" {
		return drawAll(o.svg, all)
	}
	return nil
}

const header = "scenario  nodes  floor   last    p99 median copies wasted    lag  up/s peak   mean down/s peak  mean  up MB down MB conns max mean  events/s tracker s  all s"

func (r result) row() string {
	return fmt.Sprintf("%-8s %6d %6.3f %6.3f %6.3f %6.3f %6.3f %6.3f %6.3f %10.0f %6.0f %10.0f %6.0f %6.1f %7.1f %9d %4.0f %9.0f %9.2f %6.2f",
		r.Scenario, r.Nodes, r.Floor, r.Last, r.P99, r.Median, r.Copies, r.Wasted, r.Lag,
		r.UpPeak, r.UpMean, r.DownPeak, r.DownMean, float64(r.UpBytes)/1e6, float64(r.DownBytes)/1e6,
		r.ConnsMax, r.ConnsMean, float64(r.Events)/r.Seconds, r.TrackerSeconds, r.Seconds)
}
