//go:build race

package fib

// raceEnabled: the race detector is slow, so that what no goroutine shares is tried less often under it.
const raceEnabled = true
