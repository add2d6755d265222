package members

import (
	"cmp"
	"slices"
)

// Rank orders members for a key, the responsible one first, its standby
// second, and so on. It is pure: the order depends on the key and on the ids
// of the members only, not on their order in live, and is the same on every
// node and in every version (the hash is part of the protocol). live is not
// modified.
func Rank(key string, live []Member) []Member {
	ws := weigh(key, live)
	slices.SortFunc(ws, func(a, b weighed) int { return a.compare(b, live) })
	ranked := make([]Member, len(live))
	for i, w := range ws {
		ranked[i] = live[w.at]
	}
	return ranked
}

// Top is the first n of [Rank], all members if there are fewer, for less work:
// who announces a thousand digests wants the first two of a thousand nodes for
// each.
func Top(key string, n int, live []Member) []Member {
	n = max(min(n, len(live)), 0)
	best := make([]weighed, 0, n+1) // sorted
	for _, w := range weigh(key, live) {
		if len(best) == n && (n == 0 || best[n-1].compare(w, live) < 0) {
			continue
		}
		i, _ := slices.BinarySearchFunc(best, w, func(a, b weighed) int { return a.compare(b, live) })
		best = slices.Insert(best, i, w)
		best = best[:min(len(best), n)]
	}
	top := make([]Member, len(best))
	for i, w := range best {
		top[i] = live[w.at]
	}
	return top
}

// weighed is a member's weight for a key; at is its index.
type weighed struct {
	weight uint64
	at     int
}

func weigh(key string, live []Member) []weighed {
	k := hash(key)
	ws := make([]weighed, len(live))
	for i := range live {
		ws[i] = weighed{mix(k ^ hash(live[i].ID)), i}
	}
	return ws
}

// compare puts the heavier first. Ids decide the improbable tie, so that the
// order is total.
func (w weighed) compare(o weighed, live []Member) int {
	return cmp.Or(cmp.Compare(o.weight, w.weight), cmp.Compare(live[w.at].ID, live[o.at].ID))
}

// hash is 64-bit FNV-1a followed by mix. FNV alone leaves the last bytes of
// its input, in which the ids of nodes and the names of blobs differ, in the
// low bits.
func hash(s string) uint64 {
	const (
		offset = 14695981039346656037
		prime  = 1099511628211
	)
	h := uint64(offset)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * prime
	}
	return mix(h)
}

// mix is the finalizer of MurmurHash3: a bijection in which every input bit
// changes every output bit with a probability of one half.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}
