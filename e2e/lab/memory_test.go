package lab

import (
	"context"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestBallast: of each block no more than the first page stays, and nothing after
// Close.
func TestBallast(t *testing.T) {
	const n = 256 << 20
	before := ownUsage(t).RSS
	b, err := NewBallast(context.Background(), n+1)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.mem) == 0 {
		t.Fatal("less than 2 GiB of memory are free")
	}
	page := unix.Getpagesize()
	in := make([]byte, n/page)
	if err := mincore(b.mem, in); err != nil {
		t.Fatal(err)
	}
	held := 0
	for i, v := range in {
		if v&1 == 0 {
			continue
		}
		held++
		at, err := frames(b.mem[i*page : (i+1)*page])
		if err != nil {
			t.Fatal(err)
		}
		if at[0]%uint64(ballastBlock/page) != 0 {
			t.Errorf("page %d is held, and is not the first of its block", i)
		}
	}
	// How many there are depends on what memory was free: where an earlier ballast
	// has just been let go, many first pages of blocks lie about.
	if held == 0 || held > len(in)/8 {
		t.Errorf("%d pages of %d are held", held, len(in))
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if grown := ownUsage(t).RSS - before; grown > n/2 {
		t.Errorf("%d bytes more in memory", grown)
	}
}

func TestBallastStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewBallast(ctx, 1<<30); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func addr(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

func mincore(mem, in []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, addr(mem), uintptr(len(mem)), addr(in))
	if errno != 0 {
		return errno
	}
	return nil
}
