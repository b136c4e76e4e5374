//go:build linux

package compare

import (
	"crypto/x509"
	"encoding/pem"
	"math"
	"slices"
	"strings"
	"testing"
)

func names(systems []System) []string {
	var all []string
	for _, s := range systems {
		all = append(all, s.Entry().Name)
	}
	return all
}

func TestCatalogueHasNoNameTwice(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range names(Catalogue(Programs{})) {
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
	for _, target := range Targets {
		for _, name := range []string{target.System, target.Against} {
			if !seen[name] {
				t.Errorf("target %q asks for %s, which is not in the catalogue", target.Title, name)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	for _, c := range []struct {
		patterns string
		want     string
		err      string
	}{
		{"muslin-vxlan,plain", "plain muslin-vxlan", ""}, // in the catalogue's order
		{"kernel-*", "kernel-vxlan kernel-vxlan6 kernel-vxlan-notunnel kernel-vxlan-nouso", ""},
		{"kernel-*,kernel-vxlan", "kernel-vxlan kernel-vxlan6 kernel-vxlan-notunnel kernel-vxlan-nouso", ""},
		{"muslin-udp:none", "muslin-udp:none", ""},
		{"muslin-vxlan-nouso:-udp-gso+-tun-uso,plain", "plain muslin-vxlan-nouso:-udp-gso+-tun-uso", ""},
		{"muslin-vxlan:none+mmsg", "muslin-vxlan:none+mmsg", ""},
		{"kernel", "", "no system is called kernel"},
		{"muslin-vxlan:", "", "no system is called"},
		{"muslin-vxlan:-warp-drive", "", "warp-drive"},
		{"[", "", "pattern"},
	} {
		got, err := Select(Programs{}, strings.Split(c.patterns, ","))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want an error with %q", c.patterns, err, c.err)
			}
			continue
		}
		if err != nil || strings.Join(names(got), " ") != c.want {
			t.Errorf("%s: %v, %v; want %s", c.patterns, names(got), err, c.want)
		}
	}
	all, err := Select(Programs{}, nil)
	if got := names(all); err != nil || !slices.Contains(got, "muslin-vxlan:-udp-gso") || slices.Contains(got, "muslin-udp:-udp-gso") || !slices.Contains(got, "muslin-udp:none") {
		t.Errorf("by default: %v, %v", got, err)
	}
}

func TestMuslinName(t *testing.T) {
	for name, want := range map[string]muslin{
		"muslin-vxlan":                        {backend: "vxlan"},
		"muslin-wireguard6":                   {backend: "wireguard", six: true},
		"muslin-udp-notunnel":                 {backend: "udp", nic: nicNoTunnel},
		"muslin-vxlan-nouso:-udp-gso+tun-uso": {backend: "vxlan", nic: nicNoUSO, features: "-udp-gso,tun-uso"},
	} {
		got, ok := parseMuslin(name)
		if !ok || got != want || got.name() != name {
			t.Errorf("%s: %+v, %v; want %+v", name, got, ok, want)
		}
	}
	if got, ok := parseMuslin("muslin"); ok {
		t.Errorf("muslin: %+v", got)
	}
}

func TestSelectMeasures(t *testing.T) {
	got, err := SelectMeasures([]string{"tcp-latency", "tcp-1*"})
	if err != nil || len(got) != 3 || got[0].Name != "tcp-1" || got[1].Name != "tcp-1-back" || got[2].Name != "tcp-latency" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := SelectMeasures([]string{"tcp-*", "ping"}); err == nil || !strings.Contains(err.Error(), "no measure is called ping") {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestFiguresOfMeasures(t *testing.T) {
	seen := map[string]bool{}
	var figures []Figure
	for _, m := range Measures() {
		for _, f := range m.Figures {
			if seen[f.Name] || f.Measure != m.Name || f.Title == "" || f.Unit == "" {
				t.Errorf("%+v of %s is not right, or there twice", f, m.Name)
			}
			seen[f.Name] = true
			figures = append(figures, f)
		}
	}
	for _, s := range sections {
		for _, c := range s.columns {
			if !seen[c.figure] {
				t.Errorf("the table %q asks for %s, which nobody measures", s.title, c.figure)
			}
		}
	}
	systems, measures := NeededFor(Targets, figures)
	if want := []string{"tcp-1", "tcp-4", "udp-64", "tcp-latency"}; !slices.Equal(measures, want) {
		t.Errorf("the targets need %v, want %v", measures, want)
	}
	if !slices.Contains(systems, "flannel-udp") || !slices.Contains(systems, Baseline) || slices.Contains(systems, "nebula") {
		t.Errorf("the targets need %v", systems)
	}
}

// The files are the end of what tincd 1.0.36 printed while it was asked every second.
func TestTincFoundPMTU(t *testing.T) {
	settled, searching := testdata(t, "tinc-settled.txt"), testdata(t, "tinc-searching.txt")
	for name, c := range map[string]struct {
		log  string
		want bool
	}{
		"nothing yet":  {"tincd 1.0.36 starting, debug level 0\nReady\n", false},
		"searching":    {searching, false},
		"settled":      {settled, true},
		"settled once": {settled + searching, false},
	} {
		if got := tincFoundPMTU(c.log); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestOpenVPNLog(t *testing.T) {
	if got := shortOpenVPN("OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)] [DCO]"); got != "OpenVPN 2.6.14" {
		t.Errorf("version %q", got)
	}
	if got := shortOpenVPN(""); got != "" {
		t.Errorf("no version: %q", got)
	}
	if openVPNInKernel("DCO version: N/A\nTUN/TAP device ovpn0 opened\n") {
		t.Error("a TUN device is taken for the kernel's")
	}
	if !openVPNInKernel("DCO version: 0.2\nDCO device ovpn0 opened\n") {
		t.Error("the kernel's device is not recognised")
	}
}

func TestAuthority(t *testing.T) {
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.pem) {
		t.Fatal("the authority's own certificate cannot be read")
	}
	certPEM, keyPEM, err := ca.issue("h1")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	key, _ := pem.Decode(keyPEM)
	if _, err := x509.ParsePKCS8PrivateKey(key.Bytes); err != nil {
		t.Error(err)
	}
}

func TestRotate(t *testing.T) {
	for _, c := range []struct{ systems, rounds int }{{1, 3}, {2, 5}, {7, 5}, {14, 3}, {27, 5}} {
		var subjects []*subject
		for range c.systems {
			subjects = append(subjects, new(subject))
		}
		places := map[int]bool{} // of the first system
		for round := range c.rounds {
			order := rotate(subjects, round, c.rounds)
			if len(order) != c.systems {
				t.Fatalf("%d systems: %d in round %d", c.systems, len(order), round)
			}
			places[slices.Index(order, subjects[0])] = true
		}
		if want := min(c.systems, c.rounds); len(places) != want {
			t.Errorf("%d systems in %d rounds: the first had %d places, want %d", c.systems, c.rounds, len(places), want)
		}
	}
	if got := rotate(nil, 2, 3); got != nil {
		t.Errorf("nobody: %v", got)
	}
}

func TestSignificant(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 1.23456789: 1.23457, 9876543.21: 9876540, 0.000123456789: 0.000123457} {
		if got := significant(v); math.Abs(got-want) > 1e-9*want {
			t.Errorf("%v: %v, want %v", v, got, want)
		}
	}
}
