package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"muslin/tunnel/kernel"
)

// runFeatures runs the command as a user would, and returns what it prints.
func runFeatures(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newFeaturesCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFeaturesCommand(t *testing.T) {
	text, err := runFeatures(t, "--features=-udp-gso")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text, "\n")
	at := -1
	for _, r := range kernel.Ladder {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, r.Name+" ") })
		if i <= at {
			t.Errorf("%s is not there, or not in its place", r.Name)
			continue
		}
		at = i
		if !strings.Contains(lines[i], " "+r.Since+" ") || !strings.HasSuffix(lines[i], r.Buys) {
			t.Errorf("%q lacks its version or what it buys", lines[i])
		}
		if r.Name == kernel.UDPGSO && (!strings.Contains(lines[i], " OFF ") || strings.TrimSpace(lines[i+1]) != "left out by --features") {
			t.Errorf("%q\n%q", lines[i], lines[i+1])
		}
	}

	raw, err := runFeatures(t, "--features=none,udp-gso", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report FeaturesReport
	if err := json.Unmarshal([]byte(raw), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Features) != len(kernel.Ladder) || report.Kernel == "" || report.MaxSegments < 1 {
		t.Errorf("%+v", report)
	}
	for _, f := range report.Features {
		wanted := f.Name == kernel.MMsg || f.Name == kernel.UDPGSO
		if !wanted && (f.State != featureOff || f.Reason != "--features=none") {
			t.Errorf("%+v", f)
		}
		if f.Reason == "" || f.Buys == "" || f.Since == "" {
			t.Errorf("%+v", f)
		}
	}

	for flag, want := range map[string]string{"--output=yaml": "want text or json", "--features=fast": "want auto or none first", "extra": "unknown command"} {
		if _, err := runFeatures(t, flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", flag, err, want)
		}
	}
}

// The states by what was wanted and what was found, on a kernel of our making.
func TestFeaturesReport(t *testing.T) {
	wanted := kernel.Features{}.Without(kernel.SourcePorts, "left out by --features")
	usable := wanted.Without(kernel.TUNVnet, "self-test: segment 2 of 3 differs at byte 34")
	var probes []kernel.Probe
	for _, r := range kernel.Ladder {
		p := kernel.Probe{Name: r.Name, Answer: kernel.Yes, Reason: "there"}
		switch r.Name {
		case kernel.SourcePorts:
			p.Answer, p.Reason = kernel.Unknown, "not tried: left out by --features"
		case kernel.TUNVnet, kernel.TUNTSO:
			p.Answer, p.Reason = kernel.No, "no"
		case kernel.UDPGRO:
			p.Answer, p.Reason = kernel.Unknown, "self-test not tried: operation not permitted"
		}
		probes = append(probes, p)
	}
	r := newFeaturesReport(kernel.Host{System: "Linux", Release: "7.0.1", Machine: "x86_64"}, wanted, usable, probes)
	r.MaxSegments = 64
	for name, want := range map[string][2]string{
		kernel.MMsg:        {featureOn, "there"},
		kernel.SourcePorts: {featureOff, "left out by --features"},
		kernel.UDPGRO:      {featureNotTried, "self-test not tried: operation not permitted"},
		kernel.TUNVnet:     {featureOff, "self-test: segment 2 of 3 differs at byte 34"},
		kernel.TUNUSO:      {featureOff, "needs tun-tso, which is off"},
	} {
		f := r.Features[slices.Index(kernel.FeatureNames(), name)]
		if f.Name != name || f.State != want[0] || f.Reason != want[1] {
			t.Errorf("%+v, want %v", f, want)
		}
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Linux 7.0.1 x86_64: 8 of 15 features on, up to 64 datagrams in one send\n",
		"udp-gro       not tried  5.12    a run of datagrams arrives as one\n",
		"\n                                   self-test: segment 2 of 3 differs at byte 34\n",
		"\nNOTE: udp-gso: Linux 7.0 to 7.1.4 may spoil",
		"\nNOTE: 1 not tried: the daemon uses them until the kernel refuses them\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("lacks %q:\n%s", want, text.String())
		}
	}
	usable = usable.Without(kernel.UDPGSO, "left out")
	if r := newFeaturesReport(kernel.Host{Release: "7.0.1"}, wanted, usable, probes); len(r.Notes) != 1 {
		t.Errorf("a caution about what is off: %q", r.Notes)
	}
}
