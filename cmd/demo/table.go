package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// row is one node's pull. Bytes are those of blobs that the node brought in.
type row struct {
	node          string
	seconds       float64
	origin, peers int64
}

func table(out io.Writer, rows []row) error {
	const mib = 1 << 20
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "node\tseconds\tMiB from origin\tMiB from peers\t")
	var origin, peers float64
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t\n", r.node, r.seconds, float64(r.origin)/mib, float64(r.peers)/mib)
		origin += float64(r.origin)
		peers += float64(r.peers)
	}
	fmt.Fprintf(w, "all\t\t%.1f\t%.1f\t\n", origin/mib, peers/mib)
	return w.Flush()
}
