package tracker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
)

const (
	// Version of the messages. A tracker refuses another major version, so
	// that the puller turns to the origin instead of misunderstanding.
	Version = 1
	// MaxLine bounds one message on the wire, in bytes. The largest
	// legitimate one is a hello with the bitfield of a 1 TiB blob (262,144
	// pieces, 44 KiB in base64) or a batch of MaxSums sums (50 to 140 bytes
	// each, see Sums).
	MaxLine = 256 << 10
	// MaxSums is how many piece sums go into one message.
	MaxSums = 1024
	// maxName bounds node names, registry references and reasons.
	maxName = 512
)

// PieceSum is the sha256 of one piece and the node that vouches for it: the
// one that took the piece from a source and hashed it.
type PieceSum struct {
	Index int
	Sum   chunker.Sum
	By    string
}

// Hello opens a session.
type Hello struct {
	Version int           `json:"v"`
	Node    string        `json:"node"`
	Digest  digest.Digest `json:"digest"`
	// Size of the blob in bytes; 0 for small content, whose size may be
	// unknown and which is fetched whole.
	Size int64 `json:"size,omitempty"`
	// Have is the bitfield of pieces already on disk, verified.
	Have []byte `json:"have,omitempty"`
	// Origin says that this node can fetch from the registry.
	Origin bool `json:"origin,omitempty"`
	// Later says that this node has a layer before this one to fetch: it leaves
	// the sources to that one, but for [Params.LaterStreams].
	Later bool `json:"later,omitempty"`
}

// Progress tells how many bytes a lease has brought in so far.
type Progress struct {
	Lease uint64 `json:"lease"`
	Bytes int64  `json:"bytes"`
}

// Reasons for which a lease fails, as pullers report them.
const (
	// FailNoRange: the registry ignores ranges; only the whole blob can be
	// had from it, in one stream.
	FailNoRange = "norange"
	// FailNotFound: the source does not have the blob.
	FailNotFound = "notfound"
	// FailSource: the source did not answer, broke off, or was too slow.
	FailSource = "source"
	// FailCorrupt: the source sent bytes that contradict a published sum.
	FailCorrupt = "corrupt"
)

// Failure ends a lease unfulfilled.
type Failure struct {
	Lease  uint64 `json:"lease"`
	Reason string `json:"reason"`
}

// Dispute says that the published sum of a piece is wrong: the puller has
// proved it against the digest of the whole blob.
type Dispute struct {
	Index int    `json:"i"`
	By    string `json:"by"`
}

// Up is a message of a puller to the tracker. All fields are optional; the
// first message of a session carries Hello and nothing else is required.
type Up struct {
	Hello *Hello `json:"hello,omitempty"`
	// Have are pieces taken from a source, with the sums the puller
	// computed.
	Have Sums `json:"have,omitempty"`
	// Got are pieces that came through the swarm.
	Got      []int      `json:"got,omitempty"`
	Progress []Progress `json:"progress,omitempty"`
	Failed   []Failure  `json:"failed,omitempty"`
	Disputes []Dispute  `json:"disputes,omitempty"`
	// Lost are pieces the puller no longer has.
	Lost []int `json:"lost,omitempty"`
	// MorePeers asks for other pullers to connect to.
	MorePeers bool `json:"morePeers,omitempty"`
	// Later, if not nil, replaces what the hello said.
	Later *bool `json:"later,omitempty"`
	// Whole says that the blob is complete and verified; WholeSize is its
	// size.
	Whole     bool  `json:"whole,omitempty"`
	WholeSize int64 `json:"wholeSize,omitempty"`
}

// Lease is the right, and the duty, to bring in pieces [First, First+Count)
// from a source. Small content has Count 0.
type Lease struct {
	ID    uint64 `json:"id"`
	First int    `json:"first"`
	Count int    `json:"count"`
	// Source is the node to fetch from; empty for the origin registry.
	Source string `json:"source,omitempty"`
	// Whole says that the registry ignores ranges: open the whole blob and
	// keep the pieces that are missing.
	Whole bool `json:"whole,omitempty"`
}

// Beat is the tracker's sign of life and of the swarm's.
type Beat struct {
	// Progress counts all bytes that leases have brought into the swarm; as
	// long as it grows, waiting is worth while.
	Progress int64 `json:"progress"`
	// Pullers is the number of nodes that still lack pieces.
	Pullers int `json:"pullers"`
	// Holders is the number of nodes that can serve the whole blob.
	Holders int `json:"holders"`
	// Free is the number of pieces that are neither in the swarm nor leased:
	// with none left the sources have nothing more to do for this blob.
	Free int `json:"free"`
}

// Down is a message of the tracker to a puller. All fields are optional.
type Down struct {
	// Peers are nodes to trade with; addresses come from the membership.
	Peers  []string `json:"peers,omitempty"`
	Sums   Sums     `json:"sums,omitempty"`
	Grants []Lease  `json:"grants,omitempty"`
	Revoke []uint64 `json:"revoke,omitempty"`
	// Refused lists pieces whose published sum contradicts the one this
	// puller reported; the first published one stands.
	Refused Sums `json:"refused,omitempty"`
	// Forget lists pieces whose sum was withdrawn after a dispute.
	Forget []int `json:"forget,omitempty"`
	Beat   *Beat `json:"beat,omitempty"`
	// Starved says that nothing can bring in what is missing: no holder, and
	// no puller whose origin works.
	Starved bool `json:"starved,omitempty"`
	// Done says that no puller is left: torrents can be dropped.
	Done bool `json:"done,omitempty"`
	// Error ends the session.
	Error string `json:"error,omitempty"`
}

// Out is a message with its addressee.
type Out struct {
	To   string
	Down Down
}

// Merge adds the contents of m to d, so that a slow connection receives fewer
// and larger messages instead of a growing queue.
func (d *Down) Merge(m Down) {
	d.Peers = append(d.Peers, m.Peers...)
	d.Sums = append(d.Sums, m.Sums...)
	d.Grants = append(d.Grants, m.Grants...)
	d.Revoke = append(d.Revoke, m.Revoke...)
	d.Refused = append(d.Refused, m.Refused...)
	d.Forget = append(d.Forget, m.Forget...)
	if m.Beat != nil {
		d.Beat = m.Beat
	}
	d.Starved = d.Starved || m.Starved
	d.Done = d.Done || m.Done
	if d.Error == "" {
		d.Error = m.Error
	}
}

// Empty says that d carries nothing.
func (d *Down) Empty() bool {
	return len(d.Peers)+len(d.Sums)+len(d.Grants)+len(d.Revoke)+len(d.Refused)+len(d.Forget) == 0 &&
		d.Beat == nil && !d.Starved && !d.Done && d.Error == ""
}

// Urgent says that the puller should hear of d at once: everything but sums and
// beats, of which a large swarm has many.
func (d *Down) Urgent() bool {
	return len(d.Peers)+len(d.Grants)+len(d.Revoke)+len(d.Refused)+len(d.Forget) > 0 ||
		d.Starved || d.Done || d.Error != ""
}

// Split cuts d into messages that respect MaxLine.
func (d Down) Split() []Down {
	var out []Down
	for len(d.Sums) > MaxSums {
		out = append(out, Down{Sums: d.Sums[:MaxSums]})
		d.Sums = d.Sums[MaxSums:]
	}
	return append(out, d)
}

// Merge adds the contents of m to u; see [Down.Merge].
func (u *Up) Merge(m Up) {
	if m.Hello != nil {
		u.Hello = m.Hello
	}
	u.Have = append(u.Have, m.Have...)
	u.Got = append(u.Got, m.Got...)
	for _, p := range m.Progress {
		u.mergeProgress(p)
	}
	u.Failed = append(u.Failed, m.Failed...)
	u.Disputes = append(u.Disputes, m.Disputes...)
	u.Lost = append(u.Lost, m.Lost...)
	u.MorePeers = u.MorePeers || m.MorePeers
	if m.Later != nil {
		u.Later = m.Later
	}
	if m.Whole {
		u.Whole, u.WholeSize = true, m.WholeSize
	}
}

func (u *Up) mergeProgress(p Progress) {
	for i := range u.Progress {
		if u.Progress[i].Lease == p.Lease {
			u.Progress[i].Bytes = p.Bytes
			return
		}
	}
	u.Progress = append(u.Progress, p)
}

// Empty says that u carries nothing.
func (u *Up) Empty() bool {
	return u.Hello == nil && len(u.Have)+len(u.Got)+len(u.Progress)+len(u.Failed)+len(u.Disputes)+len(u.Lost) == 0 &&
		!u.MorePeers && u.Later == nil && !u.Whole
}

// Urgent says that the tracker should hear of u at once: everything but what
// came through the swarm, which it need not know to decide.
func (u *Up) Urgent() bool {
	return u.Hello != nil || len(u.Have)+len(u.Progress)+len(u.Failed)+len(u.Disputes)+len(u.Lost) > 0 ||
		u.MorePeers || u.Later != nil || u.Whole
}

// Split cuts u into messages that respect MaxLine. What ends a state (Whole,
// failures) comes last, after the pieces it follows from.
func (u Up) Split() []Up {
	var out []Up
	for len(u.Have) > MaxSums {
		out = append(out, Up{Hello: u.Hello, Have: u.Have[:MaxSums]})
		u.Hello, u.Have = nil, u.Have[MaxSums:]
	}
	for len(u.Got) > 16*MaxSums {
		out = append(out, Up{Hello: u.Hello, Got: u.Got[:16*MaxSums]})
		u.Hello, u.Got = nil, u.Got[16*MaxSums:]
	}
	return append(out, u)
}

// ErrMessage marks a message that no correct peer sends.
var ErrMessage = errors.New("invalid message")

// Check validates a hello: known version, a well-formed sha256 digest, a size
// within bounds, and a bitfield of the right length. node is the caller's
// authenticated name.
func (h *Hello) Check(node string) error {
	switch {
	case h.Version != Version:
		return fmt.Errorf("%w: version %d, want %d: upgrade the older node", ErrMessage, h.Version, Version)
	case h.Node == "" || len(h.Node) > maxName:
		return fmt.Errorf("%w: node name of %d bytes", ErrMessage, len(h.Node))
	case h.Node != node:
		return fmt.Errorf("%w: %.64q speaks as %.64q", ErrMessage, node, h.Node)
	case h.Digest.Validate() != nil || h.Digest.Algorithm() != digest.SHA256:
		return fmt.Errorf("%w: digest %.80q", ErrMessage, h.Digest)
	case h.Size < 0 || h.Size > chunker.MaxBlobSize:
		return fmt.Errorf("%w: size %d", ErrMessage, h.Size)
	}
	if h.Size == 0 {
		return nil
	}
	g, err := chunker.GeometryOf(h.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if len(h.Have) != 0 && len(h.Have) != (g.NumPieces()+7)/8 {
		return fmt.Errorf("%w: bitfield of %d bytes for %d pieces", ErrMessage, len(h.Have), g.NumPieces())
	}
	return nil
}

// Check validates what does not depend on the state: indices of a blob with n
// pieces (0 for small content) and lengths.
func (u *Up) Check(n int) error {
	bad := func(what string, i int) error {
		return fmt.Errorf("%w: %s of piece %d, blob has %d", ErrMessage, what, i, n)
	}
	for _, p := range u.Have {
		if p.Index < 0 || p.Index >= n {
			return bad("sum", p.Index)
		}
	}
	for _, i := range u.Got {
		if i < 0 || i >= n {
			return bad("possession", i)
		}
	}
	for _, i := range u.Lost {
		if i < 0 || i >= n {
			return bad("loss", i)
		}
	}
	for _, d := range u.Disputes {
		if d.Index < 0 || d.Index >= n {
			return bad("dispute", d.Index)
		}
		if len(d.By) > maxName {
			return fmt.Errorf("%w: name of %d bytes", ErrMessage, len(d.By))
		}
	}
	for _, f := range u.Failed {
		if len(f.Reason) > maxName {
			return fmt.Errorf("%w: reason of %d bytes", ErrMessage, len(f.Reason))
		}
	}
	for _, p := range u.Progress {
		if p.Bytes < 0 {
			return fmt.Errorf("%w: progress of %d bytes", ErrMessage, p.Bytes)
		}
	}
	if u.WholeSize < 0 || u.WholeSize > chunker.MaxBlobSize {
		return fmt.Errorf("%w: whole size %d", ErrMessage, u.WholeSize)
	}
	return nil
}

// Check validates a message of the tracker against a blob of n pieces, 0 for
// small content.
func (d *Down) Check(n int) error {
	for _, list := range []Sums{d.Sums, d.Refused} {
		for _, p := range list {
			if p.Index < 0 || p.Index >= n {
				return fmt.Errorf("%w: sum of piece %d, blob has %d", ErrMessage, p.Index, n)
			}
		}
	}
	for _, i := range d.Forget {
		if i < 0 || i >= n {
			return fmt.Errorf("%w: forget piece %d, blob has %d", ErrMessage, i, n)
		}
	}
	for _, l := range d.Grants {
		if l.First < 0 || l.Count < 0 || l.First > n || l.Count > n-l.First {
			return fmt.Errorf("%w: lease of pieces %d+%d, blob has %d", ErrMessage, l.First, l.Count, n)
		}
	}
	return nil
}

// Decoder reads messages of type T, one JSON value per line, refusing longer
// lines than MaxLine without buffering them.
type Decoder[T any] struct{ s *bufio.Scanner }

// NewDecoder reads from r.
func NewDecoder[T any](r io.Reader) *Decoder[T] {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), MaxLine)
	return &Decoder[T]{s: s}
}

// Next returns the next message, io.EOF at the end of the stream, or an error
// wrapping ErrMessage if the line is too long or not of the right form.
func (d *Decoder[T]) Next() (T, error) {
	var m T
	if !d.s.Scan() {
		switch err := d.s.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			return m, fmt.Errorf("%w: line longer than %d bytes", ErrMessage, MaxLine)
		case err != nil:
			return m, fmt.Errorf("read message: %w", err)
		default:
			return m, io.EOF
		}
	}
	if err := json.Unmarshal(d.s.Bytes(), &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return m, nil
}
