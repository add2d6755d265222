// Package tig stands in for a part of nerdctl's test framework, which lies in
// nerdctl's repository and is no module of its own. The program nerdctl depends on
// this interface and calls nothing of it.
package tig

// T is what a test tells its outcome to; *testing.T is one.
type T interface {
	Helper()
	Log(args ...any)
	FailNow()
}
