//go:build linux

package doctor

import (
	"testing"
)

// What can be wrong with a host, one after the other in one network.
func TestHost(t *testing.T) {
	s := newScene(t, 2, "")
	examine(t, s.nodes[0]).well(t)
	s.faults([]fault{
		{
			id: "ip-forward", inject: on(0, "sysctl -w net.ipv4.ip_forward=0"), mend: on(0, "sysctl -w net.ipv4.ip_forward=1"),
			words: []string{"net.ipv4.ip_forward = 0", "sysctl -w net.ipv4.ip_forward=1"},
		},
	})
}
