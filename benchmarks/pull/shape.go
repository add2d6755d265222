package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// parseImage reads SIZE-LAYERS with an optional -c for content that can be
// compressed, like 1GB-4 or 250MiB-2-c. The size is that before compression.
func parseImage(s string) (result.Image, error) {
	img := result.Image{Name: s}
	rest, ok := strings.CutSuffix(s, "-c")
	img.Compressible = ok
	size, layers, ok := strings.Cut(rest, "-")
	if !ok {
		return img, fmt.Errorf("image %q: want SIZE-LAYERS, for instance 1GB-4", s)
	}
	bytes, err := humanize.ParseBytes(size)
	if err != nil || bytes < 1 || bytes > 1<<40 {
		return img, fmt.Errorf("image %q: want a size like 1GB or 250MiB", s)
	}
	img.Bytes = int64(bytes)
	if img.Layers, err = strconv.Atoi(layers); err != nil || img.Layers < 1 || img.Layers > 127 {
		return img, fmt.Errorf("image %q: want 1 to 127 layers", s)
	}
	return img, nil
}
