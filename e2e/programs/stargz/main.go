// Stargz serves the stargz snapshotter to a containerd, and converts layers to
// eStargz. It is containerd-stargz-grpc but for its flags: that command is in a module
// that cannot be had apart from its repository, and makes the same calls.
//
//	stargz convert LAYER.tar LAYER.esgz
//	stargz serve -address SOCKET -root DIR -config FILE [-config-path DIR]
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 3 && args[0] == "convert":
		return convert(args[1], args[2])
	case len(args) > 0 && args[0] == "serve":
		return serve(ctx, args[1:])
	}
	return fmt.Errorf("unknown command %q", args)
}

// convert prints the digest of the table of contents, an annotation of the layer.
func convert(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(in, 0, info.Size()), estargz.WithCompressionLevel(1))
	if err != nil {
		return fmt.Errorf("convert %s: %w", from, err)
	}
	defer blob.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, blob); err != nil {
		return fmt.Errorf("write %s: %w", to, err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	fmt.Println(blob.TOCDigest())
	return nil
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("address", "", "socket to listen on")
	root := flags.String("root", "", "where the snapshots are")
	file := flags.String("config", "", "configuration, as /etc/containerd-stargz-grpc/config.toml")
	configPath := flags.String("config-path", "", "directory of hosts.toml files, as containerd's config_path")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var cfg service.Config
	if err := toml.Unmarshal(text, &cfg); err != nil {
		return fmt.Errorf("read %s: %w", *file, err)
	}
	// containerd-stargz-grpc knows mirrors by its own configuration only, stargz
	// within containerd by hosts.toml.
	keychain := dockerconfig.NewDockerconfigKeychain(ctx)
	hosts := resolver.RegistryHostsFromConfig(resolver.Config(cfg.ResolverConfig), keychain)
	if *configPath != "" {
		hosts = resolver.RegistryHostsFromCRIConfig(ctx, resolver.Registry{ConfigPath: *configPath}, keychain)
	}
	sn, err := service.NewStargzSnapshotterService(ctx, *root, &cfg, service.WithCustomRegistryHosts(hosts))
	if err != nil {
		return fmt.Errorf("make snapshotter: %w", err)
	}
	defer sn.Close()
	l, err := net.Listen("unix", *address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(l)
}
