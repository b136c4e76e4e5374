package kernel

import (
	"slices"
	"strings"
	"testing"
)

func TestLadder(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range Ladder {
		if r.Name == "" || r.Since == "" || r.Buys == "" || seen[r.Name] {
			t.Errorf("%q: incomplete, or there twice: %+v", r.Name, r)
		}
		if r.Needs != "" && !seen[r.Needs] {
			t.Errorf("%s stands before %s, which it needs", r.Name, r.Needs)
		}
		seen[r.Name] = true
	}
}

// on lists what may be used, in Ladder's order.
func on(f Features) []string {
	var names []string
	for _, r := range Ladder {
		if f.On(r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}

// without lists all features but these.
func without(names ...string) []string {
	return slices.DeleteFunc(FeatureNames(), func(n string) bool { return slices.Contains(names, n) })
}

func TestParseFeatures(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"auto", FeatureNames()},
		{"none", nil},
		{"-udp-gso,-tun-uso", without(UDPGSO, TUNUSO)},
		{"auto,-udp-gso", without(UDPGSO)},
		{" auto , -udp-gso ", without(UDPGSO)},
		{"none,udp-gso", []string{MMsg, UDPGSO}},
		{"none,tun-uso", []string{TUNDrain, TUNVnet, TUNTSO, TUNUSO}},
		{"-tun-vnet", without(TUNVnet, TUNTSO, TUNUSO, TUNTCPGRO, TUNUDPGRO)},
		{"-mmsg", without(MMsg, UDPGSO, UDPGRO)},
		{"-tun-vnet,tun-tso", FeatureNames()},                                         // taken in again with what it needs
		{"tun-tso,-tun-vnet", without(TUNVnet, TUNTSO, TUNUSO, TUNTCPGRO, TUNUDPGRO)}, // the last word counts
		{"udp-gro", FeatureNames()},
	} {
		f, err := ParseFeatures(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if got := on(f); !slices.Equal(got, c.want) {
			t.Errorf("%q: on are %v, want %v", c.in, got, c.want)
		}
	}
	for _, in := range []string{"", "auto,none", "-udp-gso,auto", "none,", "-", "--udp-gso", "-none", "UDP-GSO", "auto -udp-gso", "all"} {
		if f, err := ParseFeatures(in); err == nil {
			t.Errorf("%q: taken, on are %v", in, on(f))
		} else if !strings.Contains(err.Error(), "--features") || !strings.Contains(err.Error(), TUNVnet) {
			t.Errorf("%q: %v: says neither the flag nor what it takes", in, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	var all Features
	f := all.Without(TUNVnet, "first").Without(TUNVnet, "second")
	if !all.On(TUNVnet) {
		t.Error("Without changed its receiver")
	}
	for name, why := range map[string]string{
		TUNVnet: "first",
		TUNTSO:  "needs tun-vnet, which is off",
		TUNUSO:  "needs tun-tso, which is off",
		UDPGSO:  "",
	} {
		if got := f.Why(name); got != why {
			t.Errorf("Why(%s) = %q, want %q", name, got, why)
		}
		state := f.Feature(name)
		if state.Name != name || state.On != (why == "") || state.Reason == "" || !state.On && state.Reason != why {
			t.Errorf("Feature(%s) = %+v", name, state)
		}
	}
}

func TestCaution(t *testing.T) {
	for release, want := range map[string]string{
		"7.0": UDPGSO, "7.0.0": UDPGSO, "7.0.14-pve": UDPGSO, "7.1.0-rc4": UDPGSO, "7.1.4": UDPGSO,
		"7.1.5": "", "7.2.0": "", "6.18.44": "", "8.0.1": "", "17.0.1": "", "": "",
	} {
		feature, what := Caution(release)
		if feature != want || (what == "") != (want == "") {
			t.Errorf("%q: %q, %q", release, feature, what)
		}
	}
}
