//go:build !race

package racetest

// Enabled: this binary has no race detector.
const Enabled = false
