package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much the kernel may delay this process's timers, so as to
// serve several at once.
//
// The Go runtime's monitor sleeps 20 µs at a time while anything runs, and a node
// in a pull wakes up thousands of times per second for a few packets. With Linux's
// default of 50 µs these naps were 40 % of the switches between threads, and
// 12 % of the processor time, of 8 nodes that pulled on 100 Mbit/s (three rounds in
// one run). The shortest wait of our own is ten times as long as this.
const timerSlack = time.Millisecond

// relax starts the program again with timerSlack, unless it has that much already.
// Threads inherit it from the one that makes them, the monitor before any code of
// ours runs, and a program from the one before it: there is no other way to give
// it to the monitor without privileges. It returns if there is nothing to do, or
// if it could not be done, which only costs processor time.
func relax() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	has, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(has) >= timerSlack {
		return
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0); err != nil {
		return
	}
	_ = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}
