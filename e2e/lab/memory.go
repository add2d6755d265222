package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// ballastStride is the part of a block of memory that is held by one page:
	// a quarter of the least block that the kernel gives back to a hypervisor
	// (2 MiB on amd64), since pages that are next to each other in an address
	// space mostly are so in memory, but not always.
	ballastStride = 512 << 10
	// ballastSpare is how much memory is left alone, in bytes.
	ballastSpare = 2 << 30
)

// Ballast keeps free memory ready for use. On a virtual machine whose
// hypervisor provides memory at the first touch and takes back what lies free,
// each new page can cost a thousand times what it costs on a machine of its
// own: 16 µs per 4 KiB on the machine where this was measured, or four CPU
// seconds per GiB, which is more than pulling it. Pages of eight nodes' caches
// are all new, so a measurement would be one of the hypervisor. The ballast
// touches the memory beforehand and holds one page of each block, so that the
// block is never taken back.
type Ballast struct{ mem []byte }

// NewBallast touches n bytes of free memory, or as many as there are without
// pressing anybody, and frees all but one page per 512 KiB. It takes some
// seconds, on a machine as described a minute.
func NewBallast(ctx context.Context, n int64) (*Ballast, error) {
	free, err := availableMemory()
	if err != nil {
		return nil, err
	}
	n = min(n, free-ballastSpare) / ballastStride * ballastStride
	if n <= 0 {
		return &Ballast{}, nil
	}
	mem, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	b := &Ballast{mem}
	// A huge page would be freed only when memory is short.
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil {
		return nil, b.fail(fmt.Errorf("advise against huge pages: %w", err))
	}
	page := unix.Getpagesize()
	for i := 0; i < len(mem); i += page {
		if i%ballastStride == 0 && ctx.Err() != nil {
			return nil, b.fail(ctx.Err())
		}
		mem[i] = 1
	}
	for i := 0; i < len(mem); i += ballastStride {
		if err := unix.Madvise(mem[i+page:i+ballastStride], unix.MADV_DONTNEED); err != nil {
			return nil, b.fail(fmt.Errorf("free memory: %w", err))
		}
	}
	return b, nil
}

func (b *Ballast) fail(err error) error {
	_ = b.Close()
	return fmt.Errorf("touch memory: %w", err)
}

// Close gives the rest back.
func (b *Ballast) Close() error {
	if b.mem == nil {
		return nil
	}
	err := unix.Munmap(b.mem)
	b.mem = nil
	return err
}

// availableMemory is how much can be used without swapping, in bytes.
func availableMemory() (int64, error) {
	p, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(p)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			return parseKiB(v)
		}
	}
	return 0, errors.New("read /proc/meminfo: no MemAvailable")
}
