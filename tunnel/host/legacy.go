//go:build linux

package host

import (
	"fmt"
	"io"
	"strings"
)

// legacyTables names the tables of iptables-legacy that this namespace has. The kernel makes one when it is first
// asked for it; none are there where nobody uses iptables-legacy, or where the kernel has no ip_tables.
func legacyTables(six bool) ([]string, error) {
	name := "ip_tables_names"
	if six {
		name = "ip6_tables_names"
	}
	f, err := procNet(name)
	if err != nil {
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	return strings.Fields(string(b)), nil
}
