// Package rules holds the rules of this repository that a compiler does not
// know, as tests: the direction of imports, packages with a manual, files that
// fit in a head, metrics that are documented, and versions that agree. A rule
// that is only written down is a wish.
package rules
