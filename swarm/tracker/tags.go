package tracker

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Resolution is what the cluster knows of a tag: the descriptor that upstream
// last gave, and how old that answer is.
type Resolution struct {
	MediaType string        `json:"mediaType,omitempty"`
	Digest    digest.Digest `json:"digest"`
	// Size of the manifest in bytes.
	Size int64 `json:"size,omitempty"`
	// Age of the upstream's answer. Ages travel instead of times, since
	// nodes' clocks differ.
	Age time.Duration `json:"age"`
}

// resolveFor is how long one node may take to ask upstream about a tag before
// another is told to: the bound that a HEAD gets in the mirror, and a little.
const resolveFor = 3 * time.Second

type tag struct {
	res       Resolution
	at        time.Time // when upstream gave it; zero: never
	asking    string    // the node that asks upstream now
	askedAt   time.Time
	published bool
}

// TagAnswer tells a node what to do about a tag.
type TagAnswer struct {
	// Known is the last known resolution, nil if there is none.
	Known *Resolution `json:"known,omitempty"`
	// Ask: the caller is the one to ask upstream, and to publish the answer.
	Ask bool `json:"ask,omitempty"`
	// Wait: another node is asking; call again in a moment.
	Wait bool `json:"wait,omitempty"`
}

// lookup decides for one node that wants to know a tag no older than ttl.
func (v *inventory) lookup(ref, node string, ttl time.Duration, now time.Time) TagAnswer {
	t := v.tags[ref]
	if t == nil {
		t = &tag{}
		v.tags[ref] = t
	}
	var a TagAnswer
	if t.published {
		r := t.res
		r.Age = now.Sub(t.at)
		a.Known = &r
		if r.Age < ttl {
			return a
		}
	}
	if t.asking != "" && t.asking != node && now.Sub(t.askedAt) < resolveFor {
		a.Wait = true
		return a
	}
	t.asking, t.askedAt = node, now
	if !t.published {
		t.at = now // so that expire does not take it first
	}
	a.Ask = true
	return a
}

// publish takes in a resolution; an older one than the known is ignored. A nil
// one says that the node's attempt failed and the next may try.
func (v *inventory) publish(ref, node string, r *Resolution, now time.Time) {
	t := v.tags[ref]
	if t == nil {
		if r == nil {
			return
		}
		t = &tag{}
		v.tags[ref] = t
	}
	if t.asking == node {
		t.asking = ""
	}
	if r == nil {
		return
	}
	if at := now.Add(-r.Age); !t.published || !at.Before(t.at) {
		t.res, t.at, t.published = *r, at, true
	}
}
