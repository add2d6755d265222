// Soci serves the SOCI snapshotter to a containerd, and makes SOCI indexes. It is
// soci-snapshotter-grpc and soci but for their flags: these commands are in a module
// that cannot be had apart from its repository, and make the same calls.
//
//	soci convert LAYOUT
//	soci serve -address SOCKET -root DIR -config FILE
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/awslabs/soci-snapshotter/ztoc"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soci:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "convert":
		return convert(ctx, args[1])
	case len(args) > 0 && args[0] == "serve":
		return serve(ctx, args[1:])
	}
	return fmt.Errorf("unknown command %q", args)
}

// convert adds an index to the one image in an OCI layout, which then has the image with
// it instead.
func convert(ctx context.Context, layout string) error {
	file := filepath.Join(layout, ocispec.ImageIndexFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return err
	}
	if len(index.Manifests) != 1 {
		return fmt.Errorf("%d images in %s", len(index.Manifests), layout)
	}
	// containerd's store has its blobs where a layout has them.
	content, err := local.NewStore(layout)
	if err != nil {
		return err
	}
	blobs, err := store.NewSociStore(layout)
	if err != nil {
		return err
	}
	db, err := soci.NewDB(filepath.Join(layout, "artifacts.db"))
	if err != nil {
		return err
	}
	b, err := soci.NewIndexBuilder(content, blobs, soci.WithArtifactsDb(db))
	if err != nil {
		return err
	}
	converted, err := b.Convert(ctx, images.Image{Name: "image", Target: index.Manifests[0]}, soci.ConvertWithNoGarbageCollectionLabels())
	if err != nil {
		return fmt.Errorf("convert %s: %w", layout, err)
	}
	index.Manifests = []ocispec.Descriptor{*converted}
	if text, err = json.Marshal(index); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("address", "", "socket to listen on")
	root := flags.String("root", "", "where the snapshots are")
	file := flags.String("config", "", "configuration, as /etc/soci-snapshotter-grpc/config.toml")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, err := config.NewConfigFromToml(*file)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*root, 0o700); err != nil {
		return err
	}
	if _, err := soci.NewDB(soci.ArtifactsDbPath(*root)); err != nil {
		return err
	}
	db, err := bbolt.Open(filepath.Join(*root, "metadata.db"), 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return fmt.Errorf("open metadata: %w", err)
	}
	defer db.Close()
	files := func(r *io.SectionReader, toc ztoc.TOC, opts ...metadata.Option) (metadata.Reader, error) {
		return metadata.NewReader(db, r, toc, opts...)
	}
	sn, err := service.NewSociSnapshotterService(ctx, *root, &cfg.ServiceConfig,
		service.WithFilesystemOptions(fs.WithMetadataStore(files)))
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
