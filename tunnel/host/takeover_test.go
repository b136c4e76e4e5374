//go:build linux

package host

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
)

// killed sets a host up as a daemon does that is then killed: its TUN is persistent and stays.
func killed(t *testing.T, c SetupConfig) *State {
	t.Helper()
	run(t, "ip tuntap add dev "+c.TUN+" mode tun")
	f := openTestTUN(t, c.TUN)
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	eventually(t, "no carrier", func() bool { return strings.Contains(run(t, "ip link show "+c.TUN), "NO-CARRIER") })
	return s
}

// The next daemon takes over what a killed one left, without a moment in which it is not there, and puts the
// host back as the first one found it.
func TestSetupTakesOver(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost(t)
			before := snapshot(t)
			c := config(t.TempDir())
			c.UseNFTables = tool.nft
			killed(t, c)
			contains(t, run(t, "ip route get 10.244.9.9"), "dev muslin0") // and not eth0
			left, rules := snapshot(t), run(t, "nft -a list ruleset")
			if ok, err := Leftover(c.StateDir, "muslin0"); err != nil || !ok {
				t.Fatalf("Leftover = %v, %v", ok, err)
			}
			f := openTestTUN(t, "muslin0")
			if ok, err := Leftover(c.StateDir, "muslin0"); err != nil || ok {
				t.Errorf("Leftover of a device that is held = %v, %v", ok, err)
			}
			var logged bytes.Buffer
			c.Logger = slog.New(slog.NewTextHandler(&logged, nil))
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			// With a carrier again, the host is as it was while the first daemon ran.
			for _, k := range changed(left, snapshot(t)) {
				if k != "link" && k != "addr" && k != "route" {
					t.Errorf("Setup changed %s", k)
				}
			}
			checkSetUp(t, "0")                                                   // neither all nor default is strict
			if now := run(t, "nft -a list ruleset"); !tool.nft && now != rules { // with nft they are replaced in one
				t.Errorf("the rules were put in anew. Before:\n%s\nafter:\n%s", rules, now)
			}
			if logged.Len() != 0 {
				t.Errorf("logged %s", &logged)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			run(t, "ip link del muslin0")
			wantSame(t, before)
		})
	}
}

// What the next daemon wants otherwise is changed, and all of both is undone in the end.
func TestSetupTakesOverAndChanges(t *testing.T) {
	for _, tool := range bothTools {
		t.Run("from "+tool.name, func(t *testing.T) {
			newHost(t)
			before := snapshot(t)
			c := config(t.TempDir())
			c.UseNFTables = tool.nft
			killed(t, c)
			f := openTestTUN(t, "muslin0")
			c.UseNFTables = !tool.nft
			c.Address, c.Subnet = prefix("10.244.6.0/32"), prefix("10.244.6.0/24")
			c.BlackholeRoute, c.MTU = false, 1400
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			contains(t, run(t, "ip addr show muslin0"), "mtu 1400", "inet 10.244.6.0/32")
			if routes := strings.TrimSpace(run(t, "ip route show proto 218 | sed 's/ *$//'")); routes != "10.244.0.0/16 dev muslin0 scope link src 10.244.6.0" {
				t.Errorf("routes\n%s", routes)
			}
			if all := run(t, "ip addr show muslin0"); strings.Contains(all, "10.244.5.0") {
				t.Errorf("the old address is still there: %s", all)
			}
			if rules := run(t, "nft list ruleset"); strings.Contains(rules, "table ip muslin") == tool.nft || strings.Contains(rules, "MUSLIN-FWD") != true {
				t.Errorf("rules of both tools, or of none:\n%s", rules)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			run(t, "ip link del muslin0")
			wantSame(t, before)
		})
	}
}

// A successor that gives up leaves the host to the daemon that was there before, which has it as it was.
func TestSharedSetup(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	before := snapshot(t)
	c := config(t.TempDir())
	first, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	during, journal := snapshot(t), readFile(t, journalPath(c.StateDir))
	other := c
	other.Shared, other.UseNFTables, other.IPMasq, other.MTU = true, true, false, 1400
	if _, err := Setup(other); err != nil {
		t.Fatal(err)
	}
	if len(changed(during, snapshot(t))) == 0 {
		t.Fatal("the successor changed nothing")
	}
	// One that fails in the middle undoes nothing that is not its own.
	other.MTU = 1 << 20
	if _, err := Setup(other); err == nil {
		t.Fatal("Setup with an MTU that no device has")
	}
	contains(t, run(t, "ip addr show muslin0"), "inet 10.244.5.0/32")
	if err := first.Restore(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, during)
	if now := readFile(t, journalPath(c.StateDir)); now != journal {
		t.Errorf("the journal is\n%s\nwas\n%s", now, journal)
	}
	if err := first.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Only the very device that the journal is about is a leftover.
func TestLeftoverOfSomebodyElse(t *testing.T) {
	newHost(t)
	c := config(t.TempDir())
	expect := func(what, name string) {
		t.Helper()
		if ok, err := Leftover(c.StateDir, name); err != nil || ok {
			t.Errorf("%s: Leftover = %v, %v", what, ok, err)
		}
	}
	expect("no journal", "muslin0")
	killed(t, c)
	run(t, "ip tuntap add dev other0 mode tun")
	expect("another name", "other0")
	run(t, "ip link del muslin0; ip tuntap add dev muslin0 mode tun")
	expect("a new device of the name", "muslin0")
	run(t, "ip link del muslin0; ip link add muslin0 type bridge")
	expect("a bridge of the name", "muslin0")
	run(t, "ip link del muslin0")
	expect("no device", "muslin0")
}

// Without a journal, the routes show which TUN is ours.
func TestCleanupWithoutJournalDeletesTUN(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	c := config(t.TempDir())
	killed(t, c)
	run(t, "ip tuntap add dev other0 mode tun")
	if err := os.Remove(journalPath(c.StateDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Cleanup(c.StateDir, nil); err != nil {
		t.Fatal(err)
	}
	links := run(t, "ip link")
	if strings.Contains(links, "muslin0") || !strings.Contains(links, "other0") {
		t.Errorf("links after Cleanup:\n%s", links)
	}
	run(t, "ip link del other0")
	after := snapshot(t)
	for _, k := range []string{"link", "addr", "route"} {
		if before[k] != after[k] {
			t.Errorf("%s is not as before\n--- before\n%s\n--- after\n%s", k, before[k], after[k])
		}
	}
}
