// Package chart tests the Helm chart in ../shoal: what it renders is decoded
// strictly into the types of the APIs, judged by rules that hold for all values,
// and its configuration and certificates are given to the program. It is a module
// of its own, since the program does not need these types.
//
// The tests want HELM and SHOAL, the paths of the two programs; `make chart`
// gives them.
package chart
