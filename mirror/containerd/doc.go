// Package containerd gives the swarm the content that the node's containerd
// holds, read only: what containerd has pulled is served to other nodes from
// where it lies, and no second copy of a layer stays on the node.
//
// A [Store] follows one containerd, 1.6 to 2.x, over its socket. It never writes
// and never deletes, and it takes no lease: containerd's garbage collection goes
// on as if nobody were looking. A blob that goes away while it is read stays
// readable to the end, as an open file does.
//
// # What counts as held
//
// A digest is held once containerd's metadata names it as content in any
// namespace. That is after its commit, which verified the digest; ingests in
// progress are never seen. Only sha256 digests count, and only blobs of at least
// one byte. A blob whose file is not as long as the metadata says, as after a
// power cut, is held back and reported as damaged.
//
// # How changes are noticed
//
// No single source tells all of it, so several do. Each is only a hint that
// something has changed: what the Store then reports is what containerd answers
// when asked for that digest, namespace by namespace. An event that is forged, out
// of order or told twice does no harm.
//
//	what happened               containerd 2.1+     before 2.1
//	content committed           /content/create     (none)
//	content deleted by a client /content/delete     /content/delete
//	content collected           (none)              (none)
//	image made, deleted         /images/*           /images/*
//	snapshot collected          /snapshot/remove    /snapshot/remove
//
// Content that garbage collection takes away, which is how nearly all content
// goes, has no event in any version. Where the Store can read containerd's
// directory it watches that, and hears of every file that comes or goes within
// milliseconds. Elsewhere it compares everything a moment after an image or a
// snapshot went, and once more a few seconds later, as the collection runs by
// itself.
//
// Behind all hints stands the comparison with a walk over all namespaces: after
// connecting, then every [Config.Reconcile]. It takes about 20 ms for 1,000
// blobs. And whoever opens a blob that turns out to be gone has it checked at
// once.
//
// # How content is read
//
// If the directory of blobs can be read, blobs are plain files to us: no copy
// through the daemon, and they can be read while containerd is down. Only regular
// files that are named by 64 hex digits and lie directly in blobs/sha256 are
// opened, never through a symbolic link; a name is made from the 32 bytes of a
// digest, so nothing that came over the network is part of a path. Of labels only
// those are read by which content refers to other content: what nothing refers to
// will be collected, as layers are that containerd discards once they are
// unpacked ([Store.Keeps]).
//
// Where the directory cannot be read, or a file is not in it (another mount
// namespace, say, where the same path means something else), content comes through
// containerd's API, a MiB at a time.
//
// # When containerd is not there
//
// containerd may come later than the Store, restart, or hang. [Store.Run] keeps
// trying; [Store.Ready] tells. Meanwhile nothing is withdrawn: the files are still
// there, and nobody but containerd deletes them.
package containerd
