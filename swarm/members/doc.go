// Package members knows which nodes of the cluster are alive and how to reach
// them, and picks, for any key, the node responsible for it.
//
// # Gossip
//
// Membership is SWIM gossip (hashicorp/memberlist, the library under Consul
// and Nomad) over one UDP and one TCP port of the same number. Every node
// probes one random other each second; who does not answer directly, through
// three others or over TCP is suspected, and dead unless it objects in time.
// There is no leader and nothing to configure beyond a first contact, and the
// cost per node does not grow with the cluster. A node that leaves says so and
// is gone everywhere within about a second. One that is killed is noticed in
// about 6 s in a small cluster and 15 s in one of 1000 nodes: the time allowed
// for objections grows with the logarithm of the size. That is patience on
// purpose, since image pulls saturate links and lose datagrams; whoever talks
// to a dead node finds out sooner by its own time-outs.
//
// # Seclusion
//
// All packets and streams carry the cluster id as a label, and are encrypted
// and authenticated with AES-256-GCM under a key that all nodes share, the
// label included. A node with another label or without the key can neither
// read nor become a member. The key makes a stranger's packets worthless; it
// does not prove which node speaks. That is the business of the certificates
// (package peertls) with which every connection to a member begins, so a
// forged member can be an obstacle but never a source of content.
//
// # Joining
//
// [Members.Run] contacts seeds: addresses, or DNS names that are resolved
// afresh at each attempt, such as a headless service that lists every node.
// It contacts a few at random, not all, so that a thousand nodes starting
// together do not each call on a thousand. While a node is alone it tries
// again quickly, at growing intervals up to 10 s. Once it has company it goes
// on looking once a minute for seeds that are not members, which heals a
// cluster that a network failure has split into parts each of which believes
// the others dead.
//
// # Instances
//
// A node's id is stable; each life of its process is an instance with a random
// suffix. A node that comes back, at the same address or at another, is a new
// instance and a member at once, without having to wait until its former life
// is declared dead. Of several live instances of one id the one that started
// last counts. So ids must be unique; a node that sees a younger namesake
// logs it as an error.
//
// # Metadata
//
// Each member carries ports and zone in at most 512 bytes, gossiped with it:
//
//	version  1 byte, 1
//	field    tag (1 byte), length (1 byte), value; any number
//
// Integers are big-endian. Unknown tags are skipped, so that later versions of
// Shoal can add fields; a change that old nodes cannot ignore needs another
// version byte. A member whose metadata does not parse, or contradicts its
// name, never becomes one.
//
// # Rendezvous
//
// [Rank] orders the live members for a key by hashing each pair (highest
// random weight). All nodes with the same view agree without a word, each
// member is first for an equal share of the keys, and when a member comes or
// goes only the keys that it wins or had won change hands.
package members
