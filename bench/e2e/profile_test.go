//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"muslin/bench/labtest"
	"muslin/tunnel/kernel"
)

// profile is the kernel that bench/oldkernel plays for muslin, and for nothing beside it: "3.10", or empty where
// muslin has the running one. Tests that need a feature ask lacks, so that what an old kernel cannot show is known
// here, and what it can is still asked for.
var profile = os.Getenv("MUSLIN_OLDKERNEL")

// lacks reports whether the kernel that is played is older than a feature of the ladder.
func lacks(name string) bool {
	r := rungOf(name)
	return profile != "" && r != nil && versionNumber(r.Since) > versionNumber(profile)
}

// versionNumber is a number that grows with the version; "any" is 0.
func versionNumber(v string) int {
	var major, minor int
	_, _ = fmt.Sscanf(v, "%d.%d", &major, &minor)
	return major*1000 + minor
}

// On the kernel that is played, `muslin features` has just what that kernel had:
//
//	h1 (muslin features)
func TestProfile(t *testing.T) {
	t.Parallel()
	if profile == "" {
		t.Skip("no older kernel is played: `make test-oldkernel` does it")
	}
	l := newLab(t, 1)
	out := must(l.Host(1).Output(t.Context(), labtest.Bin, "features", "--output", "json"))(t)
	var shown struct {
		Segments int `json:"udp_max_segments"`
		Features []struct{ Name, State, Reason string }
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	if len(shown.Features) != len(kernel.Ladder) {
		t.Errorf("%d features, want %d", len(shown.Features), len(kernel.Ladder))
	}
	for _, f := range shown.Features {
		want := "on"
		if lacks(f.Name) {
			want = "off"
		}
		if f.State != want {
			t.Errorf("%s is %s: %q; Linux %s has it %s", f.Name, f.State, f.Reason, profile, want)
		}
	}
	// Before 5.16 the headers were counted in with the 64 datagrams (158390e45612).
	want := 63
	if lacks(kernel.UDPGSO) {
		want = 1
	}
	if shown.Segments != want {
		t.Errorf("up to %d datagrams in one piece, want %d", shown.Segments, want)
	}
}
