//go:build linux

package host

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	overlayBlue  = Overlay{Network: netip.MustParsePrefix("10.1.0.0/16"), Network6: netip.MustParsePrefix("fd00:1::/48")}
	overlayGreen = Overlay{Network: netip.MustParsePrefix("10.2.0.0/16"), Network6: netip.MustParsePrefix("fd00:2::/48")}
	overlayRed   = Overlay{Network: netip.MustParsePrefix("10.3.0.0/16")}
)

// apartPairs lists what the kernel keeps apart now, as "source>destination", sorted.
func apartPairs(t *testing.T, kind firewallKind) []string {
	t.Helper()
	command := "nft list ruleset | grep -E 'ip6? saddr .* drop$' | sed -E 's/.*saddr (\\S+) ip6? daddr (\\S+) .*/\\1>\\2/'"
	if kind == withIPTables {
		command = "(iptables -S; ip6tables -S) | grep -- '-A MUSLIN-APART' | sed -E 's/.*-s (\\S+) -d (\\S+) -j DROP/\\1>\\2/'"
	}
	out := strings.Fields(run(t, command+" || true"))
	slices.Sort(out)
	return out
}

// What several overlays have in common follows them as they come and go, comes back when it is removed, is taken over
// from a killed process, and goes with the last of them.
func TestCommon(t *testing.T) {
	for _, kind := range []firewallKind{withNFTables, withIPTables} {
		t.Run(string(kind), func(t *testing.T) {
			newNamespace(t)
			run(t, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0; iptables -P FORWARD ACCEPT; iptables -A FORWARD -j ACCEPT")
			before := run(t, "iptables -S; ip6tables -S; nft list ruleset | grep muslin || true")
			dir := t.TempDir()
			c, err := OpenCommon(dir, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			expect := func(forward4, forward6 string, want ...string) {
				t.Helper()
				slices.Sort(want)
				if got := apartPairs(t, kind); !slices.Equal(got, want) {
					t.Errorf("apart: %q, want %q", got, want)
				}
				now4, _ := readSysctl(ipForward)
				now6, _ := readSysctl(ip6Forward)
				if now4 != forward4 || now6 != forward6 {
					t.Errorf("forwarding %s of IPv4 and %s of IPv6, want %s and %s", now4, now6, forward4, forward6)
				}
			}
			set := func(all ...Overlay) {
				t.Helper()
				if err := c.Set(all); err != nil {
					t.Fatal(err)
				}
			}
			set(overlayRed)
			expect("1", "0")
			asked := func() { // as if nf_tables had not been there
				if kind == withIPTables {
					c.journal.Apart, c.journal.Apart6 = kind, kind
					if err := c.journal.save(); err != nil {
						t.Fatal(err)
					}
				}
			}
			asked()
			set(overlayRed, overlayBlue)
			pair := func(a, b string) []string { return []string{a + ">" + b, b + ">" + a} }
			two := pair("10.3.0.0/16", "10.1.0.0/16")
			expect("1", "1", two...)
			asked()
			set(overlayRed, overlayBlue, overlayGreen)
			three := slices.Concat(two, pair("10.3.0.0/16", "10.2.0.0/16"), pair("10.1.0.0/16", "10.2.0.0/16"), pair("fd00:1::/48", "fd00:2::/48"))
			expect("1", "1", three...)

			damage := []string{"nft delete table ip muslin_apart", "nft flush table ip6 muslin_apart", "sysctl -qw net.ipv4.ip_forward=0"}
			if kind == withIPTables {
				damage = []string{"iptables -F MUSLIN-APART", "ip6tables -F; ip6tables -X MUSLIN-APART", "iptables -I FORWARD -i docker0 -j ACCEPT", "sysctl -qw net.ipv6.conf.all.forwarding=0"}
			}
			for _, command := range damage {
				run(t, command)
				if did, err := c.converge(); err != nil || len(did) != 1 {
					t.Errorf("after %q: did %v, %v", command, did, err)
				}
				expect("1", "1", three...)
				if did, err := c.converge(); err != nil || len(did) != 0 {
					t.Errorf("after %q, again: did %v, %v", command, did, err)
				}
			}
			if kind == withIPTables {
				if first := strings.Split(run(t, "iptables -S FORWARD"), "\n")[1]; !strings.HasSuffix(first, "-j MUSLIN-APART") {
					t.Errorf("before the jump stands %q", first)
				}
				run(t, "iptables -D FORWARD -i docker0 -j ACCEPT")
			}

			// Killed. The next one has other overlays.
			if c, err = OpenCommon(dir, 0, nil); err != nil {
				t.Fatal(err)
			}
			set(overlayRed, overlayGreen)
			expect("1", "1", pair("10.3.0.0/16", "10.2.0.0/16")...)
			set(overlayRed)
			expect("1", "0")
			asked()
			set(overlayRed, overlayGreen)
			if err := c.Undo(); err != nil {
				t.Fatal(err)
			}
			expect("0", "0")
			if after := run(t, "iptables -S; ip6tables -S; nft list ruleset | grep muslin || true"); after != before {
				t.Errorf("left:\n%s\nwant\n%s", after, before)
			}

			if c, err = OpenCommon(dir, 0, nil); err != nil {
				t.Fatal(err)
			}
			asked()
			set(overlayBlue, overlayGreen)
			if did, err := Cleanup(dir, nil); err != nil || len(did) == 0 {
				t.Errorf("clean-up: %v, %v", did, err)
			}
			expect("0", "0")
			if _, err := os.Stat(journalPath(dir)); !os.IsNotExist(err) {
				t.Errorf("the journal: %v", err)
			}

			// Somebody else has come to rely on forwarding IPv4.
			if c, err = OpenCommon(dir, 0, nil); err != nil {
				t.Fatal(err)
			}
			asked()
			set(overlayBlue, overlayGreen)
			run(t, "iptables -A FORWARD -i docker0 -j ACCEPT")
			if err := c.Undo(); err != nil {
				t.Fatal(err)
			}
			expect("1", "0")
		})
	}
}

// Two overlays in one host, each set up and undone by itself: neither takes anything of the other's away.
func TestSetupSideBySide(t *testing.T) {
	for _, nft := range []bool{true, false} {
		newNamespace(t)
		run(t, "sysctl -qw net.ipv4.ip_forward=1")
		listing := "ip route show proto 218; iptables-save | grep MUSLIN; nft list ruleset | grep -v counter; true"
		before := run(t, listing)
		dir := t.TempDir()
		setUp := func(name, tun, network, subnet, address string) *State {
			t.Helper()
			openTestTUN(t, tun)
			c := config(filepath.Join(dir, name))
			c.Name, c.TUN, c.UseNFTables, c.IPMasq = name, tun, nft, true
			c.Network, c.Subnet, c.Address = netip.MustParsePrefix(network), netip.MustParsePrefix(subnet), netip.MustParsePrefix(address)
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		blue := setUp("blue", "mu-blue", "10.1.0.0/16", "10.1.5.0/24", "10.1.5.0/32")
		alone := run(t, listing)
		setUp("green", "mu-green", "10.2.0.0/16", "10.2.5.0/24", "10.2.5.0/32")
		for _, want := range []string{"10.1.0.0/16 dev mu-blue", "10.2.0.0/16 dev mu-green"} {
			if both := run(t, listing); !strings.Contains(both, want) {
				t.Errorf("no %q in\n%s", want, both)
			}
		}
		for _, f := range blue.firewalls {
			if ok, err := f.intact(); err != nil || !ok {
				t.Errorf("blue's rules beside green's: intact %v, %v", ok, err)
			}
		}
		// green is killed, and cleaned up after.
		if did, err := Cleanup(filepath.Join(dir, "green"), nil); err != nil || len(did) == 0 {
			t.Errorf("clean-up: %v, %v", did, err)
		}
		if now := run(t, listing); now != alone {
			t.Errorf("after green went:\n%s\nwant\n%s", now, alone)
		}
		if err := blue.Undo(); err != nil {
			t.Error(err)
		}
		if after := run(t, listing); strings.Contains(after, "MUSLIN") || strings.Contains(after, "muslin") || strings.Contains(after, "proto") && !strings.Contains(before, "proto") {
			t.Errorf("left:\n%s", after)
		}
	}
}
