//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
)

// waiting is the state, as /proc/net prints it, of a socket that anybody may send to: TCP_LISTEN, and TCP_CLOSE
// for a UDP socket without a peer (the kernel's net/tcp_states.h).
var waiting = map[string]string{"tcp": "0A", "udp": "07"}

// listens reports whether a socket of the node, network "tcp" or "udp", listens on a port.
func (n *Node) listens(network string, port int) (bool, error) {
	found := false
	err := n.Do(func() error {
		for _, table := range []string{network, network + "6"} {
			content, err := os.ReadFile(threadDir() + "/net/" + table)
			if os.IsNotExist(err) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			suffix := fmt.Sprintf(":%04X", port)
			for line := range strings.Lines(string(content)) {
				// sl local_address rem_address st …
				if f := strings.Fields(line); len(f) > 3 && f[3] == waiting[network] && strings.HasSuffix(f[1], suffix) {
					found = true
				}
			}
		}
		return nil
	})
	return found, err
}
