// Package pull is a client of the mirror that behaves like containerd and
// trusts nothing: it pulls an image through one mirror, checks the digest of
// every manifest, config and layer, and tells how long each took.
//
// It is what `shoal pull` runs, to warm a node or to find out whether its mirror
// works, and what the demo and the end-to-end tests measure with.
//
// Like containerd it sends ns, holds three layers in flight, and when a body is
// cut it comes back with a Range for the rest, up to [Options.Attempts] times
// without progress. Unlike containerd it has no other host to turn to: what
// the mirror does not serve is an error, [ErrNotFound].
package pull
