//go:build e2e && race

package e2e

// raceEnabled: the tests run with -race, and so does the shoal they build. Its
// speed and memory are then not those that users get.
const raceEnabled = true
