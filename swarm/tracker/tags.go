package tracker

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// spanPrefix begins what no tag begins with: a registry's name has no space.
const spanPrefix = "span "

// SpanRef names a span of a blob, so that nodes agree on its digest as they agree
// on what a tag points to. Spans are many, and must not push out the tags.
func SpanRef(d digest.Digest, i int64) string {
	return spanPrefix + d.String() + " " + strconv.FormatInt(i, 10)
}

// known is where a reference is kept, and how long a node may take to ask about it.
func (v *inventory) known(ref string) (map[string]*tag, time.Duration) {
	if strings.HasPrefix(ref, spanPrefix) {
		return v.spans, SpanPatience
	}
	return v.tags, resolveFor
}

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
	// By is the node that published it, as the tracker knows it.
	By string `json:"by,omitempty"`
}

// Reference is a resolution with what it is of, on its way to another tracker.
type Reference struct {
	Ref string `json:"ref"`
	Resolution
}

const (
	// maxRef bounds a reference: 255 bytes of name and 128 of tag by the OCI
	// specification, and a host.
	maxRef = 1024
	// maxMediaType is what RFC 6838, section 4.2, allows with parameters left out.
	maxMediaType = 255
)

// CheckRef validates a reference. The characters that JSON escapes are in none, so
// that its length bounds that of a message.
func CheckRef(ref string) error {
	if ref == "" || len(ref) > maxRef {
		return fmt.Errorf("%w: reference of %d bytes", ErrMessage, len(ref))
	}
	if !printable(ref) || strings.ContainsAny(ref, `"\<>&`) {
		return fmt.Errorf("%w: reference %.80q", ErrMessage, ref)
	}
	return nil
}

// Check validates what a node says that a reference points to.
func (r *Resolution) Check() error {
	switch {
	case r.Digest.Validate() != nil || r.Digest.Algorithm() != digest.SHA256:
		return fmt.Errorf("%w: resolution to digest %.80q", ErrMessage, r.Digest)
	case r.Size < 0 || r.Age < 0:
		return fmt.Errorf("%w: resolution of %d bytes, %v old", ErrMessage, r.Size, r.Age)
	case len(r.MediaType) > maxMediaType || !printable(r.MediaType):
		return fmt.Errorf("%w: media type %.80q", ErrMessage, r.MediaType)
	}
	return nil
}

// printable says whether all of s is ASCII with no control characters.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// resolveFor is how long one node may take to ask upstream about a tag before
// another is told to: the bound that a HEAD gets in the mirror, and a little.
const resolveFor = 3 * time.Second

// SpanPatience is the same for a span, of half a MiB, and what the others wait for it:
// over a slow link it takes longer than a HEAD, and asking twice makes it slower.
const SpanPatience = 6 * time.Second

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
	known, patience := v.known(ref)
	t := known[ref]
	if t == nil {
		t = &tag{}
		known[ref] = t
	}
	var a TagAnswer
	if a.Known = t.last(now); a.Known != nil && a.Known.Age < ttl {
		return a
	}
	if t.asking != "" && t.asking != node && now.Sub(t.askedAt) < patience {
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

// last is what was published about a reference, whoever asks upstream now.
func (v *inventory) last(ref string, now time.Time) *Resolution {
	known, _ := v.known(ref)
	return known[ref].last(now)
}

// last is what was published, of the age that it has now; nil: nothing.
func (t *tag) last(now time.Time) *Resolution {
	if t == nil || !t.published {
		return nil
	}
	r := t.res
	r.Age = now.Sub(t.at)
	return &r
}

// publish takes in a resolution; an older one than the known is ignored. A nil
// one says that the node's attempt failed and the next may try.
func (v *inventory) publish(ref, node string, r *Resolution, now time.Time) {
	known, _ := v.known(ref)
	if t := known[ref]; t != nil && t.asking == node {
		t.asking = ""
	}
	if r != nil {
		v.adopt(Reference{Ref: ref, Resolution: *r}, node, now)
	}
}

// adopt takes in a resolution that a node has, whoever asked upstream for it.
func (v *inventory) adopt(r Reference, node string, now time.Time) {
	known, _ := v.known(r.Ref)
	t := known[r.Ref]
	if t == nil {
		t = &tag{}
		known[r.Ref] = t
	}
	if at := now.Add(-r.Age); !t.published || !at.Before(t.at) {
		t.res, t.at, t.published = r.Resolution, at, true
		t.res.By = node
	}
}

// references lists the tags that were published. Spans are left out: what nodes keep
// of them in memory, too, is found by them only.
func (v *inventory) references(now time.Time) []Reference {
	refs := make([]Reference, 0, len(v.tags))
	for ref, t := range v.tags {
		if r := t.last(now); r != nil {
			r.By = ""
			refs = append(refs, Reference{Ref: ref, Resolution: *r})
		}
	}
	return refs
}
