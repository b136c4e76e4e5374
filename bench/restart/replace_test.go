//go:build linux

package restart

import (
	"testing"

	"muslin/bench/labtest"
)

// Several replacements in a row lose nothing, double nothing and change no order.
func TestReplace(t *testing.T) {
	s := newScene(t, false)
	before := labtest.Status(t, s.nodes[0])
	s.probe()
	for range 5 {
		s.replace(labtest.Bin)
		s.expectLockHolder(s.nodes[0].Proc)
	}
	s.stopUnharmed()
	after := labtest.Status(t, s.nodes[0])
	if after.Node.Subnet != before.Node.Subnet || after.Node.VtepMAC != before.Node.VtepMAC {
		t.Errorf("node %+v, was %+v", after.Node, before.Node)
	}
}
