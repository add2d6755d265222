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

// niceness is by how much this process steps back behind others of its control
// group, in nice levels; five make its share of a busy processor a third of theirs.
//
// What a node needs for its own pull, containerd's unpacking, comes before what its
// Shoal does for other nodes. 8 nodes on two processors that began 2 s apart (1 GB,
// 100 Mbit/s) were ready after 94 s at the latest instead of 99 s, two runs in turn.
// In a pod it is the control group's weight that counts, which its CPU request sets.
const niceness = 5

// relax starts the program again with timerSlack and niceness, unless it has that
// much slack already. Threads inherit both from the one that makes them, the monitor
// before any code of ours runs, and a program from the one before it: there is no
// other way to give them to the monitor without privileges. It returns if there is
// nothing to do, or if it could not be done, which only costs processor time.
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
	// The call gives 20 minus the level (getpriority(2)), and takes it as it is.
	if p, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-p+niceness)
	}
	// By its own path: the name that ps, top and pgrep know is the last part of it.
	if path, err := os.Executable(); err == nil {
		_ = syscall.Exec(path, os.Args, os.Environ())
	}
}
