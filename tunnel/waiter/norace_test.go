//go:build !race

package waiter

const raceEnabled = false
