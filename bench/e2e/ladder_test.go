//go:build linux

package e2e

import (
	"strings"
	"testing"

	"muslin/bench/lab"
	"muslin/tunnel/kernel"
)

// rungFile is the size of the files that each rung carries, in bytes.
var rungFile = lab.Modest(int64(32 << 20))

// Every rung of the ladder, on both of muslin's hosts, to each other and to the kernel's VXLAN device:
//
//	p1a ── cni0 ─ h1 (muslin) ─┬─ br0 ─┬─ h2 (muslin) ─ cni0 ── p2a
//	                           └───────┴─ flannel.1 ─ h3 ─ cni0 ── p3a
func TestLadder(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
	leases = append(leases, kernelPeer(t, l.Host(3), leases...))
	rungs := []string{"auto", "none"}
	for _, r := range kernel.Ladder {
		rungs = append(rungs, "-"+r.Name)
	}
	full := make(map[string]bool) // what is on with all features
	for _, features := range rungs {
		t.Run(features, func(t *testing.T) {
			flags := []string{"--features", features}
			daemons := startBoth(t, l, "vxlan", leases, [2][]string{flags, flags})
			defer stopAll(t, daemons[:]...)
			s := status(t, daemons[0])
			if features == "auto" {
				for _, f := range s.Features {
					full[f.Name] = f.On
				}
			}
			expectFeatures(t, s, full, features)
			for _, h := range l.Hosts()[1:] {
				expectCarried(t, l.Host(1).Pods()[0], h.Pods()[0], rungFile)
			}
			for _, m := range daemons {
				expectNoDrops(t, m)
			}
		})
	}
}

// expectFeatures wants status to have off just what --features leaves out, what needs that, and what is off on
// this kernel anyway. tun-napi is there for where superpackets cannot be written: it comes on without them.
func expectFeatures(t *testing.T, s *lab.Status, full map[string]bool, features string) {
	t.Helper()
	seen := make(map[string]bool)
	for _, f := range s.Features {
		r := rungOf(f.Name)
		if r == nil {
			continue // a sysctl or a buffer
		}
		seen[f.Name] = true
		switch left := "-" + f.Name; {
		case features == "none" || features == left:
			if f.On || !strings.Contains(f.Reason, "--features") {
				t.Errorf("%s is %v: %q; want it off by --features", f.Name, f.On, f.Reason)
			}
		case needs(r, strings.TrimPrefix(features, "-")):
			if f.On || !strings.Contains(f.Reason, "needs "+r.Needs) {
				t.Errorf("%s is %v: %q; want it off for want of %s", f.Name, f.On, f.Reason, r.Needs)
			}
		case f.Name == kernel.TUNNAPI || len(full) == 0: // without "auto", when a single rung is run
		case f.On != full[f.Name]:
			t.Errorf("%s is %v: %q; with all features it is %v", f.Name, f.On, f.Reason, full[f.Name])
		}
	}
	for _, r := range kernel.Ladder {
		if !seen[r.Name] {
			t.Errorf("status does not show %s", r.Name)
		}
	}
}

func rungOf(name string) *kernel.Rung {
	for i := range kernel.Ladder {
		if kernel.Ladder[i].Name == name {
			return &kernel.Ladder[i]
		}
	}
	return nil
}

// needs reports whether a rung stands on the feature name, directly or through others.
func needs(r *kernel.Rung, name string) bool {
	for r = rungOf(r.Needs); r != nil; r = rungOf(r.Needs) {
		if r.Name == name {
			return true
		}
	}
	return false
}

// Nodes that do not have the same features, and the other backend:
//
//	p1a ── cni0 ─ h1 (muslin) ── br0 ── h2 (muslin) ─ cni0 ── p2a
func TestMixedFeatures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, backend string
		flags         [2][]string
	}{
		{"full to bare", "vxlan", [2][]string{nil, {"--features", "none"}}},
		{"full to bare", "udp", [2][]string{nil, {"--features", "none"}}},
		{"full", "udp", [2][]string{}},
		{"bare", "udp", [2][]string{{"--features", "none"}, {"--features", "none"}}},
		{"three queues to one", "vxlan", [2][]string{{"--queues", "3"}, {"--queues", "1"}}},
		{"two queues", "udp", [2][]string{{"--queues", "2"}, {"--queues", "2"}}},
		{"superpackets from the host only to the host only", "vxlan", [2][]string{
			{"--features", "-tun-tcp-gro,-tun-udp-gro,-udp-gro"}, {"--features", "-tun-tso,-udp-gso"},
		}},
	} {
		t.Run(c.backend+", "+c.name, func(t *testing.T) {
			l := newLab(t, 2)
			leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
			daemons := startBoth(t, l, c.backend, leases, c.flags)
			expectCarried(t, l.Host(1).Pods()[0], l.Host(2).Pods()[0], rungFile)
			for _, m := range daemons {
				expectNoDrops(t, m)
			}
		})
	}
}
