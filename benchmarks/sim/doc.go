// Command sim simulates how a blob spreads over many nodes: the decisions are
// made by the code that nodes run (tracker.Large: who fetches what from where,
// who meets whom; picker.Picker: which piece to ask of which peer), the network
// is a model, and time is simulated.
//
//	go run ./benchmarks/sim -nodes 10,100,1000 -scenario cold,churn
//
// Scenarios:
//
//	cold     all nodes begin at once, nobody has anything
//	warm     -holders nodes have the blob, the others begin at once
//	rolling  a node begins every -every
//	churn    cold, and a share of the nodes falls silent at random times, while
//	         as many new ones begin
//	uneven   cold, and a share of the nodes has slow links
//
// Results are the times divided by the bound, the copies that left the registry,
// messages to and from the tracker per second, and connections per node; see
// type result. The same flags and seed give the same results, but for the time
// that the simulation itself took.
//
// # The model
//
// Every node, and the registry, has an uplink and a downlink; see type link for
// how they are shared. The network between them is without limit and adds a
// latency, as do the tracker's messages. Those that the tracker sends take their
// share of the last node's uplink; nothing else but pieces takes any. A lease is
// a stream from its source, beginning after a latency. Requests of one connection
// are served in their order; all connections of a node share its uplink. Disks,
// hashing and encryption take no time.
package main
