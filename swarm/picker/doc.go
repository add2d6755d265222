// Package picker decides which piece of a blob a node asks of which peer.
//
// A [Picker] knows one blob's pieces that the node wants, and has a [Peer] for
// every connected one: what it has, what was asked of it, and how fast it
// answers. It does no I/O and has no clock: the wire (package engine) and the
// simulator drive the same code.
//
// # What to ask
//
// A piece is asked of one peer at a time. Of those that a peer has and nobody
// was asked for, mostly the first one of the blob is taken, since a blob is
// read from its beginning: whoever unpacks it can work while it comes. Now and
// then ([Tuning.Rare]), and whenever no other peer has that first one, it is the
// rarest of the next [Tuning.Window] pieces, so that what few have spreads before
// they leave, and neighbours have something to trade.
//
// # How much to ask
//
// A peer is asked ahead for what it sends in [Tuning.Ahead], so that it never
// idles between two pieces, and for no more, since what is asked of a slow peer
// cannot come from a fast one.
//
// # Whom to serve
//
// A node sends to few peers at a time ([Slots]); of those that wait the one that
// gains pieces most slowly ([Peer.Pace]) is next. News of the pieces that it has got
// wait a little for each other ([Linger], [MaxNews]).
//
// # Slow peers and the end
//
// When a peer has nothing else to give it is asked for a piece that another
// one was asked for but would deliver much later. Whichever comes first wins;
// the other request is cancelled. So neither the last piece nor a peer that
// fell silent is waited for.
//
// Nothing here is safe for concurrent use.
package picker
