// Package e2e holds the end-to-end tests: real containerd, the kubelet's own
// client library, a real registry, and Shoal, on the shaped network of package
// lab. They carry the build tag e2e and need root:
//
//	sudo go test -tags e2e ./e2e/...
//
// The first run compiles containerd and the registry. To try another binary
// than the one this source tree makes, add -args -shoal /path/to/shoal. With
// -artifacts the logs of all nodes of a failed test are kept. With -race the
// shoal that is tested has the race detector in it too.
package e2e
