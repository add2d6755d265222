package tracker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/shoal-dev/shoal/chunker"
)

// Sums are piece sums in a message. Most of what a tracker sends are these, one
// for each piece to each puller, so on the wire consecutive pieces of one
// voucher are one run with the sums in one base64 string, 50 to 80 bytes a piece
// instead of 105. The order is not kept.
type Sums []PieceSum

type sumRun struct {
	Index int    `json:"i"`
	By    string `json:"by,omitempty"`
	Sums  []byte `json:"sums"`
}

// MarshalJSON writes runs.
func (s Sums) MarshalJSON() ([]byte, error) {
	in := slices.Clone(s)
	slices.SortStableFunc(in, func(a, b PieceSum) int {
		return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.Index, b.Index))
	})
	runs := []sumRun{}
	next := 0
	for _, p := range in {
		n := len(runs)
		if n == 0 || p.Index != next || p.By != runs[n-1].By {
			runs = append(runs, sumRun{Index: p.Index, By: p.By})
			n++
		}
		runs[n-1].Sums = append(runs[n-1].Sums, p.Sum[:]...)
		next = p.Index + 1
	}
	return json.Marshal(runs)
}

// UnmarshalJSON reads runs. Whether the pieces exist is for Check to say.
func (s *Sums) UnmarshalJSON(b []byte) error {
	var runs []sumRun
	if err := json.Unmarshal(b, &runs); err != nil {
		return err
	}
	out := Sums{}
	for _, r := range runs {
		if len(r.Sums)%len(chunker.Sum{}) != 0 {
			return fmt.Errorf("piece sums of %d bytes", len(r.Sums))
		}
		for k, sum := range slices.Collect(slices.Chunk(r.Sums, len(chunker.Sum{}))) {
			out = append(out, PieceSum{Index: r.Index + k, Sum: chunker.Sum(sum), By: r.By})
		}
	}
	*s = out
	return nil
}
