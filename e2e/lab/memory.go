package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// ballastBlock is the least block of memory that the kernel gives back to
	// a hypervisor, in bytes (amd64).
	ballastBlock = 2 << 20
	// ballastSpare is how much memory is left alone, in bytes.
	ballastSpare = 2 << 30
)

// Ballast keeps free memory ready for use. On a virtual machine whose
// hypervisor provides memory at the first touch and takes back what lies free,
// each new page can cost a thousand times what it costs on a machine of its
// own: 16 µs per 4 KiB on the machine where this was measured, or four CPU
// seconds per GiB, which is more than pulling it. Pages of eight nodes' caches
// are all new, so a measurement would be one of the hypervisor. The ballast
// touches the memory beforehand and holds the first page of each block, so that
// the block is never taken back. The rest of a block stays in one piece: the
// page cache takes half a megabyte at a time where it can, and would else look
// for it in memory that was not touched.
type Ballast struct{ mem []byte }

// NewBallast touches n bytes of free memory, or as many as there are without
// pressing anybody, and frees all but one page per block. It takes some
// seconds, on a machine as described a minute. It needs root, to see where its
// pages are.
func NewBallast(ctx context.Context, n int64) (*Ballast, error) {
	free, err := availableMemory()
	if err != nil {
		return nil, err
	}
	n = min(n, free-ballastSpare) / ballastBlock * ballastBlock
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
		if i%ballastBlock == 0 && ctx.Err() != nil {
			return nil, b.fail(ctx.Err())
		}
		mem[i] = 1
	}
	frames, err := frames(mem)
	if err != nil {
		return nil, b.fail(err)
	}
	for from := 0; from < len(frames); {
		to := from
		for to < len(frames) && frames[to]%uint64(ballastBlock/page) != 0 {
			to++
		}
		if to > from {
			if err := unix.Madvise(mem[from*page:to*page], unix.MADV_DONTNEED); err != nil {
				return nil, b.fail(fmt.Errorf("free memory: %w", err))
			}
		}
		from = to + 1
	}
	return b, nil
}

// frames are the numbers of the physical pages of memory that was touched.
func frames(mem []byte) ([]uint64, error) {
	const (
		entry   = 8         // bytes per page in the file
		present = 1 << 63   // the page is in memory,
		number  = 1<<55 - 1 // at this place
	)
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, fmt.Errorf("look for pages: %w", err)
	}
	defer f.Close()
	page := unix.Getpagesize()
	raw := make([]byte, len(mem)/page*entry)
	if _, err := f.ReadAt(raw, int64(uintptr(unsafe.Pointer(&mem[0])))/int64(page)*entry); err != nil {
		return nil, fmt.Errorf("look for pages: %w", err)
	}
	list := make([]uint64, len(mem)/page)
	for i := range list {
		v := binary.NativeEndian.Uint64(raw[i*entry:])
		if v&present == 0 || v&number == 0 {
			return nil, errors.New("look for pages: the kernel does not say where they are, it needs root")
		}
		list[i] = v & number
	}
	return list, nil
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
	n := int64(-1)
	if err := parseFields(p, map[string]*int64{"MemAvailable": &n}); err != nil {
		return 0, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	if n < 0 {
		return 0, errors.New("read /proc/meminfo: no MemAvailable")
	}
	return n, nil
}
