package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// maxReferences is how many references one message carries. Each takes at most
	// 2.8 KB by tracker.CheckRef and Resolution.Check, so that all fit into maxBody;
	// most take 250 bytes.
	maxReferences = 256
	// farewellTimeout bounds the last messages of a node that stops: a few, to nodes
	// that answer within milliseconds.
	farewellTimeout = 2 * time.Second
)

// references is a message from tracker to tracker. A node can say in it no more than
// it could publish.
type references struct {
	Refs []tracker.Reference `json:"refs"`
}

// handover passes what this node's tracker knows of references on to the nodes that
// become responsible for them: when nodes come and go, and when this one stops. So
// the cluster's memory of what registries said survives the restart of every node,
// as long as not all that know a thing restart at once. The time of the registry's
// word goes along.
//
// Its methods are for one goroutine.
type handover struct {
	n *Node
	// told are, for each reference, those of the nodes responsible for it that this
	// node has told. One that has restarted has forgotten, and has another life.
	told map[string][]life
}

// life is one life of a node's process.
type life struct {
	id   string
	born int64
}

func lifeOf(m members.Member) life { return life{m.ID, m.Born} }

func newHandover(n *Node) *handover { return &handover{n: n} }

// run hands over until ctx ends, and then for the last time.
func (h *handover) run(ctx context.Context) error {
	retry := time.Duration(0)
	for {
		changed := h.n.cfg.Members.Changed()
		var again <-chan time.Time
		if !h.flush(ctx, h.n.cfg.Members.Live()) && ctx.Err() == nil {
			retry = min(max(2*retry, 500*time.Millisecond), 30*time.Second)
			again = time.After(retry + rand.N(retry))
		} else {
			retry = 0
		}
		select {
		case <-ctx.Done():
			h.farewell(context.WithoutCancel(ctx))
			return nil
		case <-changed:
			// More are on their way when many nodes start at a time.
			select {
			case <-time.After(announceDelay):
			case <-ctx.Done():
			}
		case <-again:
		}
	}
}

// farewell tells those who will be responsible without this node.
func (h *handover) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	others := slices.DeleteFunc(slices.Clone(h.n.cfg.Members.Live()), func(m members.Member) bool { return m.ID == h.n.self() })
	if !h.flush(ctx, others) {
		h.n.cfg.Log.Info().Msg("not all that this node knew of references could be handed over")
	}
}

// flush tells those of the live members that are responsible for a reference what
// this node knows of it, if it has not told them; false if one could not be told.
func (h *handover) flush(ctx context.Context, live []members.Member) bool {
	known := h.n.tracker.References()
	told := make(map[string][]life, len(known))
	to := map[members.Member][]tracker.Reference{}
	for _, r := range known {
		for _, m := range members.Top(tagKey(r.Ref), announceTo, live) {
			switch {
			case m.ID == h.n.self():
			case slices.Contains(h.told[r.Ref], lifeOf(m)):
				told[r.Ref] = append(told[r.Ref], lifeOf(m))
			default:
				to[m] = append(to[m], r)
			}
		}
	}
	h.told = told
	ok := true
	for m, refs := range to {
		if err := h.tell(ctx, m, refs); err != nil {
			h.n.cfg.Log.Debug().Str("node", m.ID).Int("references", len(refs)).Err(err).Msg("references not handed over, will be sent again")
			ok = false
		}
	}
	return ok
}

// tell sends what one member has to know, in messages of bounded size, one after the
// other.
func (h *handover) tell(ctx context.Context, m members.Member, refs []tracker.Reference) error {
	for batch := range slices.Chunk(refs, maxReferences) {
		err := h.n.peers.call(ctx, m, http.MethodPost, pathReferences, references{batch}, nil)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		// A node of an older version has no such path, and is not asked again.
		for _, r := range batch {
			h.told[r.Ref] = append(h.told[r.Ref], lifeOf(m))
		}
	}
	return nil
}

// serveReferences takes in what another node's tracker knows.
func (n *Node) serveReferences(w http.ResponseWriter, r *http.Request) {
	var msg references
	if !n.readJSON(w, r, &msg) {
		return
	}
	for _, ref := range msg.Refs {
		if err := errors.Join(tracker.CheckRef(ref.Ref), ref.Check()); err != nil {
			n.badBody(w, r, err)
			return
		}
	}
	n.tracker.Adopt(caller(r), msg.Refs)
	w.WriteHeader(http.StatusNoContent)
}
