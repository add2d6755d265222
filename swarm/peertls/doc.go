// Package peertls gives a node its identity in the cluster and keeps
// strangers out: it loads, checks, rotates and issues the certificates with
// which the nodes of a cluster recognise each other, and makes the TLS
// configurations of the control plane and of the peer wire.
//
// # Files
//
// A credentials directory holds four files:
//
//	ca.crt      the cluster's certificate authorities, PEM, one or several
//	tls.crt     this node's certificate, PEM, then any intermediates
//	tls.key     its private key, PEM (PKCS #8, SEC 1 or PKCS #1)
//	gossip.key  the membership's symmetric keys, one per line, each 32 bytes
//	            in standard base64; the first encrypts, all decrypt
//
// The first three have the names that Kubernetes and cert-manager use, so a
// mounted secret is such a directory. `openssl rand -base64 32` makes the
// fourth. [NewCA], [CA.Issue], [WriteCA] and [WriteNode] make all of them for
// people who have no certificate manager.
//
// # Trust
//
// Both sides of every connection present a certificate and verify the other's
// chain up to one of the authorities in ca.crt, with the extended key usage of
// the role it plays: a node certificate needs both "server auth" and "client
// auth". TLS 1.3 is the only version. Sessions are not resumed, so each
// connection is verified afresh against the authorities of that moment.
//
// Host names and addresses are not checked. Nodes find each other by gossip
// and change addresses whenever they are rescheduled, so a certificate bound
// to an address would be wrong by the next day. What a host name protects in
// the web, namely that a certificate of the same authority for somebody else
// is not accepted, is covered in two other ways: the authority signs nothing
// but the nodes of one cluster, and the node's name is in its certificate and
// is compared by the layer above with the name it dialled or was told
// ([PeerID], [Speaks]). Use an authority of its own for each cluster, never a
// company-wide one.
//
// # Identity
//
// A node's name is in a URI of its certificate's subject alternative name:
//
//	shoal://<cluster>/<node>
//
// The cluster must be the one this node was configured with; a certificate
// with such a URI for another cluster is refused even when the same authority
// signed it. The node "*" ([AnyNode]) stands for a certificate that all nodes
// share, as when one Kubernetes secret is mounted everywhere: its owner is a
// node of the cluster, but may speak for any of them. A certificate without
// such a URI is identified by its subject's common name, where "*" alone means
// [AnyNode] too. It does not say its cluster, so its authority alone decides to
// which one it belongs.
//
// # Rotation
//
// [Credentials.Run] watches the directory and reads it again when anything in
// it changes, and now and then anyway, for filesystems that report nothing.
// The swap of the ..data link, by which Kubernetes changes all files of a
// secret at one instant, is followed as one change. (A subPath mount is never
// updated by Kubernetes; mount the directory.) A set of files that does not
// hold together, for instance half of a copy in progress or a certificate
// that ca.crt does not vouch for, is logged and counted, and the previous set
// stays in force.
//
// New connections, in both directions, use the new files at once; open ones
// go on under the certificates with which they began. An authority is
// replaced without interruption in three steps: put the old and the new one
// into every ca.crt, then issue every node a certificate of the new one, then
// take the old one out.
package peertls
