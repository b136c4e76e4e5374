//go:build linux

package host

import (
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
				for end := deadline(); len(s.Warnings()) != want; time.Sleep(20 * time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("warnings %q, want %d", s.Warnings(), want)
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
