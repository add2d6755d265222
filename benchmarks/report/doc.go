// Package report writes down what benchmarks of pulls measured, for people and
// for programs. [Write] makes a directory of it:
//
//	results.jsonl  the records as they are, see package result
//	results.csv    the same as a table
//	report.md      the report, which embeds the plots
//	*.svg          the plots
//
// The same records make the same bytes, so that a report can be made again from
// its results.jsonl and compared.
//
// # Columns of results.csv
//
// There is a row for each node of each record; a record in which no node pulled
// to the end has one row, whose node is empty. Figures have the units of their
// names and are not rounded; a figure that is not known is empty. The first
// columns repeat the record in the rows of all its nodes:
//
//	scenario, mode, round
//	image, image_bytes, image_layers, image_compressible
//	nodes, link_bits_per_second, registry_link_bits_per_second
//	bound_seconds, moved_bytes, registry_sent_bytes, origin_bytes
//	copies, origin_copies, slowest_seconds, cpu_idle
//
// These are the node's:
//
//	node, seconds, fetch_seconds, sent_bytes, received_bytes
//
// And these are the record's again, for the processes of each name, in the
// alphabetical order of all names of the run:
//
//	NAME_cpu_seconds, NAME_cpu_seconds_per_gib, NAME_peak_rss_bytes,
//	NAME_peak_heap_bytes, NAME_written_bytes
//
// # Plots
//
// A mode has the same colour, dashes and marks in all plots. A plot without
// anything to show is not made: a report has those against the number of nodes
// only if more than one was measured, and progress only of records with samples.
// An axis that is logarithmic, because its figures differ by far, or that does not
// begin at 0, because they hardly do, says so.
package report
