package containerd

import (
	"context"
	"fmt"

	apievents "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// The topics that say something about content, in containerd's filter
// language; one that matches is enough.
var topics = [...]string{
	`topic=="/content/create"`,
	`topic=="/content/delete"`,
	`topic~="^/images/"`,
	`topic=="/namespaces/delete"`,
	`topic=="/snapshot/remove"`,
}

// hint says that something may have changed.
type hint struct {
	kind hintKind
	// key and namespace of a hintDigest; namespace may be "".
	key       key
	namespace string
	// probe says that somebody could not read it.
	probe bool
}

type hintKind int

const (
	// hintNone is nothing to us.
	hintNone hintKind = iota
	// hintDigest names a blob.
	hintDigest
	// hintUnnamed says that content came or went, not which.
	hintUnnamed
	// hintCollected says that content may be collected, now or soon.
	hintCollected
)

// readEvent reads what containerd tells, which anybody who may use its socket
// can have published.
func readEvent(e *types.Envelope) hint {
	named := func(s string) hint {
		k, ok := keyOf(digest.Digest(s))
		if !ok {
			return hint{} // of no interest, whatever it is
		}
		return hint{kind: hintDigest, key: k, namespace: e.GetNamespace()}
	}
	switch e.GetTopic() {
	case "/content/create":
		var v apievents.ContentCreate
		if err := proto.Unmarshal(e.GetEvent().GetValue(), &v); err != nil {
			return hint{kind: hintUnnamed}
		}
		return named(v.GetDigest())
	case "/content/delete":
		var v apievents.ContentDelete
		if err := proto.Unmarshal(e.GetEvent().GetValue(), &v); err != nil {
			return hint{kind: hintUnnamed}
		}
		return named(v.GetDigest())
	case "/images/create", "/images/update":
		return hint{kind: hintUnnamed}
	case "/images/delete", "/namespaces/delete", "/snapshot/remove":
		return hint{kind: hintCollected}
	default:
		return hint{}
	}
}

// listen passes on what containerd tells until the connection breaks or ctx
// ends. It is on the way when ready is closed; events may still be missed for
// a moment, as nothing tells when the daemon has taken the subscription in.
func (d *daemon) listen(ctx context.Context, ready chan<- struct{}, hints chan<- hint) error {
	stream, err := d.events.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: topics[:]})
	if err != nil {
		return fmt.Errorf("subscribe to containerd's events: %w", err)
	}
	close(ready)
	for {
		e, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("listen to containerd's events: %w", err)
		}
		h := readEvent(e)
		if h.kind == hintNone {
			continue
		}
		select {
		case hints <- h:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
