// Command pull measures how long images take to land on the nodes of a
// cluster, in a laboratory on this machine (package e2e/lab): real containerd
// on every node, CRI pulls, shaped links.
//
//	sudo go run ./benchmarks/pull -scenario cold,warm -mode perfect,shoal -image 1GB-1,1GB-4 -rounds 3 -out results
//
// # Scenarios
//
//	cold      nobody has the image, all nodes pull at once
//	warm      the first node has it, the others pull at once
//	rolling   nobody has it, and the nodes start one after the other (-stagger);
//	          each node's time is from its own start
//	upgrade   every node has a first version, and all pull a second one that
//	          differs in the last layer
//	churn     all but the last node pull at once; after half of the time that the
//	          links need, the second one is killed and cut off, and the last one
//	          begins; each node's time is from its own start
//	alone     one node pulls, the others stand by
//	pair      links are not shaped; the first node has the image, one other
//	          pulls it
//
// # Modes
//
//	direct    every node pulls from the registry
//	perfect   the same with the registry's link unshaped: nothing but each
//	          node's own link limits it, and the machine
//	shoal     through Shoal
//	other     through somebody else's mirror, see below
//
// Scenarios, images and modes take turns in each round in one laboratory, so
// that whatever disturbs the machine disturbs all of them. Each measured pull is
// of an image that no node has seen before.
//
// # Yardsticks
//
// The bound is size ÷ the rate of a node's link, or of the registry's if that is
// slower. What of the excess is the machine's own (two processors unpacking
// eight layers at once) shows in mode perfect, and in the idle share of its
// processors. Copies are what left the registry's interface, what TCP sent
// again included and few of the packets' headers, ÷ the size; beside it the nodes' own count of
// what they took from the registry. Bytes written are those to files on disk for
// Shoal; containerd's store is in memory here, so for containerd all that it
// wrote, to connections, too, which is little.
//
// The memory that the pulls will use is touched first, see lab.Ballast.
//
// # Results
//
// With -out DIR every measured pull is appended to DIR/results.jsonl at once, and
// a report (Markdown, CSV, plots) is made there at the end. -report makes one of
// the files of several runs:
//
//	go run ./benchmarks/pull -report -out DIR -title 'Pull times' run1/results.jsonl run2/results.jsonl
//
// # Rivals
//
// Mode other starts -other-command in a shell on every node, a Go template with
// the fields Node, Address, Index (from 0), Peers (the addresses of all nodes,
// separated by commas), First (that of the first one), Nodes (how many), Registry,
// RegistryURL, Socket, ContentRoot, HostsDir and Dir (an empty directory of its
// own). containerd gets -other-hosts, a file with the same fields, as its
// hosts.toml. The first pull waits until -other-ready, a template of a URL, gives
// an answer on every node. The folder benchmarks/rivals has an example: a
// pull-through cache.
package main
