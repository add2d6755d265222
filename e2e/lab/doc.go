// Package lab is a laboratory of machines on one machine: a registry and
// nodes, each in namespaces of its own, joined by links of a chosen speed. Each
// node runs a real containerd that is asked to pull by the kubelet's own client
// library, and, when wanted, Shoal. The end-to-end tests and the benchmarks
// stand on it.
//
//	     registry            n1 … nN
//	┌───────────────┐   ┌──────────────┐
//	│ distribution  │   │ containerd   │
//	│ :5000         │   │ shoal serve  │
//	└─────eth0──────┘   └─────eth0─────┘
//	       │ tbf               │ tbf       each link shaped on both ends
//	    ───┴────── bridge ─────┴───        in a namespace of its own
//
// # What it needs
//
// Linux, root, and a few programs; [Check] says which are missing. containerd and the
// registry are built from the module versions pinned in e2e/programs, once, into
// the user's cache directory ([BuildPrograms]).
//
// # Isolation
//
// A machine of the laboratory is a set of namespaces (network, mount, process,
// host name, IPC) held open by one process that waits on a pipe from us. When
// this program ends, in whatever way, the pipe closes, the holder exits, and as
// it was process 1 of its namespace the kernel kills all that ran there and
// takes links, mounts and namespaces with it. Nothing is named in a global table
// and no process has to be found again, so a run that was killed with SIGKILL
// leaves nothing but a temporary directory and perhaps empty control groups,
// both of which the next run removes.
//
// There is no route out: traffic cannot leave the laboratory, and what the
// laboratory listens on cannot be reached from outside it. [Machine.DialContext]
// and [Machine.Client] let a test in.
//
// Figures of one laboratory would be spoiled by a second one beside it, so [New]
// holds a lock for as long as the laboratory lives and fails at once when
// another holds it.
//
// # Images
//
// [Lab.Push] makes an image of a given size and pushes it over the registry's
// unshaped loopback. Its content is incompressible, and its layers name one file
// over and over, so that unpacking costs the bandwidth it costs in life while it
// needs a few MiB of space only. e2e/programs/hello is the image's entry point.
//
// # Measuring
//
// [Lab.RegistryTraffic] and [Node.Traffic] read the interfaces' byte counters,
// which count all that really went over a link, retransmissions and headers
// included. [Process.Usage] reads CPU time and memory from /proc.
package lab
