//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
)

// tcpListen is TCP_LISTEN of the kernel's net/tcp_states.h, as /proc/net/tcp prints it.
const tcpListen = "0A"

// listens reports whether a socket of the node listens on a TCP port.
func (n *Node) listens(port int) (bool, error) {
	found := false
	err := n.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			content, err := os.ReadFile("/proc/thread-self/net/" + table)
			if os.IsNotExist(err) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			suffix := fmt.Sprintf(":%04X", port)
			for line := range strings.Lines(string(content)) {
				// sl local_address rem_address st …
				if f := strings.Fields(line); len(f) > 3 && f[3] == tcpListen && strings.HasSuffix(f[1], suffix) {
					found = true
				}
			}
		}
		return nil
	})
	return found, err
}
