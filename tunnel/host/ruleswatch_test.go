//go:build linux

package host

import (
	"os"
	"strings"
	"testing"
	"time"
)

// Without waiting for the period: what nftables tells of is enough, for the rules to come back and for the warning to
// come and go.
func TestRunHearsOfTheFirewall(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost(t)
			openTestTUN(t, "muslin0")
			c := config(t.TempDir())
			c.UseNFTables, c.Resync = tool.nft, time.Hour
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			warned := func(want int) {
				t.Helper()
				for end := deadline(); len(s.ObstacleWarnings()) != want; time.Sleep(20 * time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("warnings %q, want %d", s.ObstacleWarnings(), want)
						return
					}
				}
			}
			damage, look, whole := "iptables -F FORWARD", "iptables-save | grep -c -- '-A.*MUSLIN'", "10"
			if tool.nft {
				damage, look, whole = "nft delete table ip muslin", "nft list table ip muslin | grep -c counter", "8"
			}
			err = runWhile(t, s, func(in func(string) string) {
				for range 2 {
					in(damage)
					eventuallyIn(t, in, look, whole)
				}
				in("nft add table inet theirs; nft 'add chain inet theirs passing { type filter hook forward priority 0; policy drop; }'")
				warned(2)
				in("nft delete table inet theirs")
				warned(0)
			})
			if err != nil {
				t.Errorf("Run() = %v", err)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Of iptables-legacy the kernel tells nothing: rules come back, and warnings come and go, by the period.
func TestRunLooksAtLegacy(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	t.Setenv("PATH", programs(t, map[string]string{"iptables": "iptables-legacy", "ip6tables": "ip6tables-legacy"})+":"+os.Getenv("PATH"))
	c := config(t.TempDir())
	c.Resync = 200 * time.Millisecond
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	warned := func(want int) {
		t.Helper()
		for end := deadline(); len(s.ObstacleWarnings()) != want; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("warnings %q, want %d", s.ObstacleWarnings(), want)
				return
			}
		}
	}
	err = runWhile(t, s, func(in func(string) string) {
		in("iptables-legacy -F; iptables-legacy -t nat -F MUSLIN-POSTRTG")
		eventuallyIn(t, in, "iptables-legacy-save | grep -c -- '-A.*MUSLIN'", "10")
		in("iptables-legacy -I FORWARD -j REJECT")
		warned(2)
		in("iptables-legacy -D FORWARD -j REJECT")
		warned(0)
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	if left := run(t, "iptables-legacy-save"); strings.Contains(left, "MUSLIN") {
		t.Errorf("left:\n%s", left)
	}
}
