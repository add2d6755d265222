package mirror

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// byteRange is the part of a blob that a response carries.
type byteRange struct {
	off, n int64
	// partial: a range was asked for, so the status is 206.
	partial bool
	// closed: the client named the end, as lazy snapshotters do. containerd
	// resumes with open ranges.
	closed bool
}

// contentRange is the header of a 206.
func (r byteRange) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", r.off, r.off+r.n-1, size)
}

var (
	errUnsatisfiable = errors.New("range is outside of the blob")
	errManyRanges    = errors.New("only one contiguous range is served at a time")
)

// maxRanges bounds the ranges of one header that are looked at. stargz asks
// for at most a few dozen.
const maxRanges = 256

// parseRange reads a Range header for a blob of size bytes, by RFC 9110
// section 14. An absent, malformed or foreign header means the whole blob, as
// the RFC allows. Several ranges are served when they join into one.
func parseRange(header string, size int64) (byteRange, error) {
	whole := byteRange{n: size}
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(unit, "bytes") || size == 0 {
		return whole, nil
	}
	var got []byteRange
	seen := 0
	for spec := range strings.SplitSeq(set, ",") {
		if spec = strings.Trim(spec, " \t"); spec == "" {
			continue // the list syntax allows empty elements
		}
		if seen++; seen > maxRanges {
			return byteRange{}, errManyRanges
		}
		r, ok := parseSpec(spec, size)
		if !ok {
			return whole, nil
		}
		if r.n > 0 {
			got = append(got, r)
		}
	}
	switch {
	case seen == 0:
		return whole, nil
	case len(got) == 0:
		return byteRange{}, errUnsatisfiable
	}
	slices.SortFunc(got, func(a, b byteRange) int { return cmp.Compare(a.off, b.off) })
	all := got[0]
	for _, r := range got[1:] {
		if r.off > all.off+all.n {
			return byteRange{}, errManyRanges
		}
		all.n = max(all.n, r.off+r.n-all.off)
		all.closed = all.closed && r.closed
	}
	return all, nil
}

// parseSpec reads one of first-last, first- and -length. A range outside of
// the blob comes back empty.
func parseSpec(spec string, size int64) (byteRange, bool) {
	a, b, ok := strings.Cut(spec, "-")
	if !ok || (a == "" && b == "") {
		return byteRange{}, false
	}
	first, ok1 := parsePosition(a)
	last, ok2 := parsePosition(b)
	switch {
	case !ok1 || !ok2:
		return byteRange{}, false
	case a == "": // the last b bytes
		n := min(last, size)
		return byteRange{off: size - n, n: n, partial: true, closed: true}, true
	case b == "":
		return byteRange{off: first, n: max(size-first, 0), partial: true}, true
	case last < first:
		return byteRange{}, false
	}
	last = min(last, size-1)
	return byteRange{off: first, n: max(last-first+1, 0), partial: true, closed: true}, true
}

// parsePosition reads a run of digits, saturating: a position may be larger
// than any blob, and means its end then. Empty reads as zero.
func parsePosition(s string) (int64, bool) {
	var v int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if v > (math.MaxInt64-9)/10 {
			v = math.MaxInt64
			continue
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}
