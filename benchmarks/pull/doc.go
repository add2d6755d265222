// Command pull measures how long an image takes to land on all nodes of a
// cluster, in a laboratory on this machine (package e2e/lab): real containerd
// on every node, CRI pulls, shaped links.
//
//	sudo go run ./benchmarks/pull -nodes 8 -size 1GiB -layers 1 -rate 100mbit -mode cold
//
// Modes:
//
//	direct   every node pulls from the registry; no Shoal
//	perfect  the same with the registry's link unshaped: nothing but each node's
//	         own link limits it, and the machine
//	cold     no node has the image; all pull at once through Shoal
//	warm     the first node has it and the others pull at once
//
// Several modes, separated by commas, take turns in each round in one
// laboratory, so that whatever disturbs the machine disturbs all of them. Each
// pull is of an image that no node has seen before.
//
// The yardstick is the bound: size ÷ the rate of a node's link, or of the
// registry's if that is slower. What of the excess is the machine's own (two
// processors unpacking eight layers at once) shows in the idle share of its
// processors, and beside mode perfect, when it took its turn before.
//
// The memory that the pulls will use is touched first, see lab.Ballast.
package main
