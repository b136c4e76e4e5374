//go:build linux

package host

import (
	"testing"
	"time"
)

// Without waiting for the period: what nftables tells of is enough for the rules to come back.
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
			damage, look, whole := "iptables -F FORWARD", "iptables-save | grep -c -- '-A.*MUSLIN'", "10"
			if tool.nft {
				damage, look, whole = "nft delete table ip muslin", "nft list table ip muslin | grep -c counter", "8"
			}
			err = runWhile(t, s, func(in func(string) string) {
				for range 2 {
					in(damage)
					eventuallyIn(t, in, look, whole)
				}
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
