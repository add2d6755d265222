package lab

import (
	"context"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestBallast: about one page of each block stays, and nothing after Close.
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
	for _, v := range in {
		held += int(v & 1)
	}
	// Its pages need not lie side by side, so there may be fewer or more.
	if blocks := n / ballastBlock; held == 0 || held > 4*blocks {
		t.Errorf("%d pages are held for %d blocks", held, blocks)
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
