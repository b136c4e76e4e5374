//go:build linux

package lab

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// SlowEnv names the environment variable that says by what whole factor this machine is slower than those that
// the limits of the lab and of its tests were chosen for: unset or 1 for a machine as people have it, 10 or 20
// for one whose processor is emulated. Patience and Modest are all that looks at it.
const SlowEnv = "MUSLIN_SLOW"

var slow = sync.OnceValue(func() int {
	n, err := parseSlow(os.Getenv(SlowEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return n
})

func parseSlow(value string) (int, error) {
	if value == "" {
		return 1, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > 1000 {
		return 0, fmt.Errorf("environment variable %s=%q: give a whole number from 1 to 1000", SlowEnv, value)
	}
	return n, nil
}

// Patience is how long to wait on this machine for what takes at most limit on a machine as people have it.
func Patience(limit time.Duration) time.Duration { return limit * time.Duration(slow()) }

// Steady reports whether this machine's processors run whenever they have work, as real ones do. An emulated one is
// taken away for milliseconds while it holds packets, which others overtake meanwhile on another processor: there
// the order of packets says nothing about who carried them.
func Steady() bool { return slow() == 1 }

// Modest is how much of n (bytes to carry, bits or packets a second) can be asked of this machine.
func Modest[N ~int | ~int64 | ~float64](n N) N { return n / N(slow()) }
