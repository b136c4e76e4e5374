//go:build linux

package lab

import (
	"testing"
	"time"
)

func TestParseSlow(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{"": 1, "1": 1, "12": 12, "1000": 1000} {
		if got, err := parseSlow(value); got != want || err != nil {
			t.Errorf("parseSlow(%q) = %d, %v, want %d", value, got, err, want)
		}
	}
	for _, value := range []string{"0", "-1", "1.5", "fast", "1001"} {
		if got, err := parseSlow(value); err == nil {
			t.Errorf("parseSlow(%q) = %d, want an error", value, got)
		}
	}
}

// What a slower machine gets more of, and what less.
func TestPace(t *testing.T) {
	t.Parallel()
	factor := slow()
	if got, want := Patience(3*time.Second), time.Duration(3*factor)*time.Second; got != want {
		t.Errorf("Patience(3s) = %v, want %v", got, want)
	}
	if got, want := Modest(64<<20), 64<<20/factor; got != want {
		t.Errorf("Modest(64 MiB) = %d, want %d", got, want)
	}
}
