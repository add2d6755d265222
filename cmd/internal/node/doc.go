// Package node is the composition root: it makes one Shoal node out of a
// [Config] and runs it. It is the only place that knows all the parts; the
// parts know each other downwards only (mirror, swarm, chunker) and by
// interfaces they declare themselves.
//
//	containerd ──► mirror listener ──► mirror ──► swarm ──► piece store
//	other nodes ─► control listener ────────────► swarm       │
//	other nodes ─► wire listener ───► engine ◄──── swarm      ▼
//	other nodes ─► gossip ──────────► members            containerd's store
//	Prometheus, kubelet ─► metrics listener
//
// # Starting
//
// [New] opens every file and socket that the node needs and checks what can be
// checked, so that a mistake in the configuration is an error there, with the
// name of the setting, and not a surprise an hour later. Ports may be 0; the
// addresses in use are then in [Node.Addresses].
//
// # Stopping
//
// When the context of [Node.Run] ends, the node goes in the order in which
// others depend on it:
//
//  1. /readyz fails. The mirror goes on, for Config.Drain at most, until no
//     response has been under way for a second: what containerd asks for next
//     may be the rest of an image. What is cut then is cut with FIN, and
//     containerd gets the rest from its next host.
//  2. The node leaves the gossip, so that no peer chooses it any more.
//  3. Transfers to peers end, then the swarm, the engine and the store.
//
// A node that is killed instead loses nothing either; it is only slower, since
// its peers have to notice and its store has to hash what it holds again.
package node
