// Package hosts puts Shoal into containerd's registry configuration, and takes
// it out again.
//
// containerd looks for a file hosts.toml in <config_path>/<registry>/, or in
// <config_path>/_default/, at each pull. A host that stands in it is asked before
// the registry is. [Configure] makes Shoal the first of these hosts, [Unconfigure]
// restores what was there; [Watch] does the former again whenever somebody has
// undone it, [WatchRemoval] the latter. Nothing is restarted, config.toml is neither read nor written.
//
// # The one idea
//
// Everything of ours in a file is one block of lines between two comments:
//
//	# BEGIN shoal: ...
//	[host."http://127.0.0.1:6500"]
//	  capabilities = ["pull", "resolve"]
//	# END shoal
//
// To configure is to put the block in, to unconfigure is to cut it out, and
// everything else in the file stays as it is, byte for byte: mirrors, authorities,
// headers, comments, order, line ends. So no record is needed of what the file
// was, and whoever edits it meanwhile keeps his edits. What is between the two
// comments is ours, and written anew each time.
//
// The block stands before the first table of the file, for the order of the
// [host] tables is the order in which containerd asks, and after the keys of the
// top level, which would otherwise become keys of ours. The first line of a file
// stays the first: k3s recognises by it which files it has made.
//
// # What containerd makes of it
//
//   - server is left as it is. Where there is none, containerd asks the registry
//     itself, as it does without a file. In _default a server would lead all
//     registries to one address, so it is never ours to write.
//   - Both capabilities are needed: without "resolve", tags are not asked for here.
//   - The address is a loopback one. Any other can be diverted by the proxy
//     settings in containerd's environment.
//   - _default counts only for registries that have no directory, not even an
//     empty one. So to configure all registries is to configure _default and every
//     directory there is; and a new directory is not made beside a _default that
//     somebody else needs.
//   - Without hosts.toml (or with an empty one) containerd takes authorities and
//     client certificates from *.crt, *.cert and *.key in the directory; with one it
//     does not. A file that is made in such a directory names them.
//   - A file with an error is dropped whole, silently. So a file that does not
//     parse is reported with the line, and nothing is written anywhere.
//   - Hosts that are not tables of their own, but dotted keys or inline tables, are
//     not seen by containerd 2 and come first in containerd 1. They are refused too.
//   - config_path must be this directory alone. Two directories in it, which is the
//     default from containerd 2.2, are taken for one that does not exist by the pulls
//     of CRI.
//
// # How a file is changed
//
// All files are read and all new texts made before the first one is written. Each
// new text is parsed and compared with the old one: the same hosts in the same
// order, ours before them, every other value equal, and cutting the block out gives
// the old bytes. Then a temporary file in the same directory gets the text, mode and
// owner, is synced, and renamed over the old one; a symbolic link is followed. If
// one file cannot be written, those written before it are put back.
//
// The file as it was just before the block went in lies beside it as
// hosts.toml.shoal-backup, for people; it is never read to restore anything.
// Unconfigure removes it if the file is that again, and leaves it otherwise. A
// directory that was made here has a file .shoal in it, so that Unconfigure can
// tell whether to remove it. Several processes take turns by a lock on the directory.
package hosts
