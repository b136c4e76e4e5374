//go:build linux

package e2e

import (
	"fmt"
	"math/bits"
	"testing"

	"muslin/bench/lab"
)

// What can be switched on each device that a packet passes on the kernel's side.
var (
	offloads       = []string{"tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload", "tx-checksumming", "tx-udp_tnl-segmentation", "tx-udp-segmentation"}
	offloadDevices = []string{"eth0", "flannel.1", "pod"}
)

// offloadFile is the size of the file in bytes that goes both ways in each combination.
var offloadFile = lab.Modest(int64(16 << 20))

// muslin with all features, and the kernel's VXLAN with its offloads in many combinations:
//
//	p1a ── cni0 ─ h1 (muslin) ── br0 ── eth0 ─ h2 ─ flannel.1 ─ cni0 ── eth0 ─ p2a
//
// The table is pairwise: of any two switches, on the same device or on two, every combination occurs. Each
// switch is on in row 0, and off in four of the seven other rows, a different four for each: two such sets of
// rows overlap, and neither holds the other (Kleitman and Spencer, Families of k-independent sets).
func TestKernelOffloads(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "ethtool")
	l := newLab(t, 2)
	leases := []leased{leaseOf(l.Host(1))}
	leases = append(leases, kernelPeer(t, l.Host(2), leases...))
	m := startStatic(t, l.Host(1), "vxlan", leases)
	addPod(t, m, "a")
	seen := make(map[string]int) // rows in which a switch was on, and those in which it was off
	const rows = 8
	run := 0
	for row := range rows {
		t.Run(fmt.Sprint(row), func(t *testing.T) {
			run++
			sets := fourOfSeven()
			for _, device := range offloadDevices {
				want := make(map[string]bool)
				for _, name := range offloads {
					want[name] = row == 0 || sets[0]&(1<<(row-1)) == 0
					sets = sets[1:]
				}
				node, link := offloadDevice(l.Host(2), device)
				got := must(node.SetOffloads(t.Context(), link, want))(t)
				for _, name := range offloads {
					seen[fmt.Sprint(device, name, got[name])]++
					if got[name] != want[name] {
						t.Logf("%s of %s is %v", name, device, got[name])
					}
				}
			}
			expectCarried(t, l.Host(1).Pods()[0], l.Host(2).Pods()[0], offloadFile)
			expectNoDrops(t, m)
		})
	}
	if run < rows {
		return // somebody wanted to see a single one
	}
	for _, device := range []string{"eth0", "pod"} { // flannel.1 lacks some
		for _, name := range offloads {
			node, link := offloadDevice(l.Host(2), device)
			if !must(node.HasOffload(t.Context(), link, name))(t) {
				t.Logf("%s of %s does not exist on this kernel", name, device)
				continue
			}
			if on, off := seen[fmt.Sprint(device, name, true)], seen[fmt.Sprint(device, name, false)]; on < 1 || off < rows/2 {
				t.Errorf("%s of %s was on in %d rows and off in %d: this test shows nothing of it", name, device, on, off)
			}
		}
	}
}

// offloadDevice is where a device of offloadDevices is, and its name there.
func offloadDevice(h *lab.Host, device string) (*lab.Node, string) {
	if device == "pod" {
		return h.Pods()[0].Node, "eth0"
	}
	return h.Node, device
}

// fourOfSeven are the 35 sets of four out of seven rows, as bits.
func fourOfSeven() []uint {
	var sets []uint
	for s := range uint(1 << 7) {
		if bits.OnesCount(s) == 4 {
			sets = append(sets, s)
		}
	}
	return sets
}
