// Command image makes Shoal's container image of binaries that are built
// already, without Docker: `make image`.
//
// The image holds the binary and nothing else. All that is said of it (version,
// revision, time, platform) is read from the binaries, so the same binaries make
// the same image, bit for bit. The program needs no files besides: the
// authorities of public registries are compiled in, see cmd/shoal.
//
//	image -o image.tar -tag registry.example/shoal:1.0 bin/linux-amd64/shoal bin/linux-arm64/shoal
//	image -push registry.example/shoal:1.0 bin/linux-amd64/shoal bin/linux-arm64/shoal
//
// The archive is an OCI image layout, as `ctr images import` and others read it.
// For pushing, credentials are docker's: config.json and its helpers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

type options struct {
	output, tag, push string
	insecure          bool
	binaries          []string
}

func main() {
	var o options
	flag.StringVar(&o.output, "o", "", "write an archive with the image's OCI layout to this file")
	flag.StringVar(&o.tag, "tag", "", "name of the image in the archive")
	flag.StringVar(&o.push, "push", "", "push it under this name")
	flag.BoolVar(&o.insecure, "insecure", false, "push over plain http")
	flag.Parse()
	o.binaries = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context, w io.Writer, o options) error {
	if len(o.binaries) == 0 || o.output == "" && o.push == "" {
		return errors.New("usage: image [-o FILE [-tag NAME]] [-push NAME [-insecure]] BINARY [BINARY]")
	}
	index, err := newIndex(o.binaries)
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	if o.output != "" {
		if err := writeArchive(o.output, o.tag, index); err != nil {
			return fmt.Errorf("write %s: %w", o.output, err)
		}
		fmt.Fprintf(w, "%s %s\n", o.output, digest)
	}
	if o.push == "" {
		return nil
	}
	if err := push(ctx, o.push, o.insecure, index); err != nil {
		return fmt.Errorf("push %s: %w", o.push, err)
	}
	fmt.Fprintf(w, "%s@%s\n", o.push, digest)
	return nil
}

func push(ctx context.Context, to string, insecure bool, index v1.ImageIndex) error {
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(to, opts...)
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
}
