//go:build linux && (amd64 || arm64)

package main

import (
	"fmt"
	"slices"
	"strings"
)

// version is a release of the kernel.
type version struct{ major, minor int }

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) after(o version) bool {
	return v.major > o.major || v.major == o.major && v.minor > o.minor
}

// profiles are the kernels that can be played: Go's own floor, those of RHEL 7 and 8 (3.10, 4.18; as released by
// kernel.org, without what Red Hat took over from later ones), and long-term kernels.
var profiles = []version{{3, 2}, {3, 10}, {4, 4}, {4, 18}, {5, 4}}

func profileNames() string {
	var names []string
	for _, p := range profiles {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// profile is the kernel that is played.
type profile struct {
	kernel version
	rows   []row // of what it did not have
}

func profileOf(name string) (profile, error) {
	i := slices.IndexFunc(profiles, func(v version) bool { return v.String() == name })
	if i < 0 {
		return profile{}, fmt.Errorf("--profile %q: give one of %s", name, profileNames())
	}
	p := profile{kernel: profiles[i]}
	for _, r := range allRows() {
		if r.since.after(p.kernel) {
			p.rows = append(p.rows, r)
		}
	}
	return p, nil
}

// asks are the calls that the supervisor has to look at.
func (p profile) asks() []call {
	var calls []call
	for _, r := range p.rows {
		for _, c := range r.looked() {
			if !slices.ContainsFunc(calls, c.equal) {
				calls = append(calls, c)
			}
		}
	}
	return calls
}
