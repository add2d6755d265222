package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a number of bytes: 1073741824, 512MiB, 20 GiB, 1.5TB.
type byteSize int64

var byteUnits = []struct {
	suffix string
	bytes  float64
}{
	// Longer suffixes first: all of them end with that of bytes.
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	// Kubernetes quantities.
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *byteSize) UnmarshalText(p []byte) error {
	text := strings.TrimSpace(string(p))
	number, unit := text, 1.0
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || math.IsNaN(n) || n*unit > math.MaxInt64/2 {
		return fmt.Errorf("%q is no size: want bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB", text)
	}
	*s = byteSize(n * unit)
	return nil
}
