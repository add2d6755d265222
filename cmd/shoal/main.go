// Command shoal is a node of a peer-to-peer container image distribution
// system, and the tools around it: shoal serve runs the node, shoal certs makes
// its credentials, shoal configure makes containerd ask its mirror, shoal pull tries
// the mirror out, shoal kube is for the Helm chart.
//
// This package decodes flags, environment and configuration file into plain
// structs, once; nothing below it reads any of them. One file per command.
// The reference in docs/reference/cli.md is generated from the structs by
// `make docs`, and a test compares the two.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit statuses. Scripts rely on them: they never change their meaning.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotServed   = 3
	exitUnreachable = 4
	exitDigest      = 5
	exitWarnings    = 6
	exitErrors      = 7
	exitInterrupted = 130 // 128 + SIGINT, as shells have it
)

// cli is the grammar.
type cli struct {
	Serve       serveCmd       `cmd:"" help:"Run a node: mirror, swarm and all."`
	Certs       certsCmd       `cmd:"" help:"Make the credentials with which nodes recognise each other."`
	Configure   configureCmd   `cmd:"" help:"Make containerd ask the mirror before the registries."`
	Doctor      doctorCmd      `cmd:"" help:"Find out why images do not come through Shoal on this node."`
	Unconfigure unconfigureCmd `cmd:"" help:"Make containerd ask the registries as before."`
	Kube        kubeCmd        `cmd:"" help:"Steps of an installation in Kubernetes."`
	Pull        pullCmd        `cmd:"" help:"Pull an image through a mirror and verify every digest."`
	Version     versionCmd     `cmd:"" help:"Tell the version."`
}

// std is where a command writes.
type std struct{ out, err io.Writer }

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		relax()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks, the second one kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], std{os.Stdout, os.Stderr}))
}

// exited carries the status with which kong wants to end the process, out of
// the depth of the parser: after printing help.
type exited int

// run is the whole program; it returns the exit status.
func run(ctx context.Context, args []string, s std) (status int) {
	defer func() {
		if r := recover(); r != nil {
			code, ok := r.(exited)
			if !ok {
				panic(r)
			}
			status = int(code)
		}
	}()
	parser, err := newParser(&cli{}, s, kong.Exit(func(code int) { panic(exited(code)) }))
	if err != nil {
		fmt.Fprintln(s.err, "shoal:", err)
		return exitFailure
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(s.err, "shoal:", err)
		var parse *kong.ParseError
		if errors.As(err, &parse) && parse.Context != nil && parse.Context.Command() != "" {
			fmt.Fprintf(s.err, "Try 'shoal %s --help'.\n", commandPath(parse.Context))
		} else {
			fmt.Fprintln(s.err, "Try 'shoal --help'.")
		}
		return exitUsage
	}
	kctx.BindTo(ctx, (*context.Context)(nil))
	if err := kctx.Run(s); err != nil {
		var code interface{ exitStatus() int }
		status := exitFailure
		if errors.As(err, &code) {
			status = code.exitStatus()
		}
		fmt.Fprintf(s.err, "shoal %s: %v\n", commandPath(kctx), err)
		return status
	}
	return exitOK
}

// commandPath is the selected command without its arguments.
func commandPath(k *kong.Context) string {
	path := ""
	for _, p := range k.Path {
		if p.Command != nil {
			if path != "" {
				path += " "
			}
			path += p.Command.Name
		}
	}
	return path
}

// newParser builds the parser for a grammar.
func newParser(c *cli, s std, more ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append([]kong.Option{
		kong.Name("shoal"),
		kong.Description("Peer-to-peer distribution of container images: nodes that pull the same image share what arrives, so that about one copy leaves the registry."),
		kong.Vars{"registries": publicRegistries},
		kong.DefaultEnvars("SHOAL"),
		kong.Writers(s.out, s.err),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100, FlagsLast: true}),
	}, more...)...)
}

// usageError is a mistake of the caller's: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string   { return e.err.Error() }
func (e usageError) Unwrap() error   { return e.err }
func (e usageError) exitStatus() int { return exitUsage }
