package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/compare"
)

// planOf is what the command would measure with these flags.
func planOf(t *testing.T, args ...string) (compare.Plan, error) {
	t.Helper()
	b, cmd := benchLabCommand()
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	if b.quick {
		b.beQuick(cmd.Flags().Changed)
	}
	return b.plan()
}

func TestBenchLabPlan(t *testing.T) {
	for _, c := range []struct {
		args            string
		rounds, seconds int
		has, hasNot     string // systems
		measures        string
	}{
		{"", 5, 3, "plain kernel-vxlan-nouso muslin-udp muslin-vxlan:none flannel-udp tinc", "muslin-udp:-mmsg",
			"tcp-1 tcp-1-back tcp-4 tcp-4-back udp-64 udp-1400 udp-64-fixed udp-1400-fixed tcp-latency udp-latency"},
		{"--quick", 3, 1, "plain kernel-vxlan muslin-vxlan nebula", "muslin-vxlan:none kernel-vxlan-nouso", "tcp-1 udp-64 tcp-latency"},
		{"--quick --rounds 7 --measures tcp-4", 7, 1, "plain", "muslin-vxlan:none", "tcp-4"},
		{"--check", 5, 3, "kernel-vxlan kernel-vxlan-nouso muslin-vxlan-nouso flannel-udp", "nebula muslin-vxlan:none", "tcp-1 tcp-4 udp-64 tcp-latency"},
		{"--check --quick", 3, 1, "kernel-vxlan-notunnel plain muslin-wireguard wireguard-go", "tinc", "tcp-1 tcp-4 udp-64 tcp-latency"},
		{"--only muslin-*,plain --seconds 9", 5, 9, "plain muslin-udp:-mmsg", "kernel-vxlan", ""},
	} {
		p, err := planOf(t, strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if p.Settings.Rounds != c.rounds || p.Settings.Seconds != c.seconds {
			t.Errorf("%q: %+v, want %d rounds of %d s", c.args, p.Settings, c.rounds, c.seconds)
		}
		got := map[string]bool{}
		for _, s := range p.Systems {
			got[s.Entry().Name] = true
		}
		for _, name := range strings.Fields(c.has) {
			if !got[name] {
				t.Errorf("%q leaves out %s", c.args, name)
			}
		}
		for _, name := range strings.Fields(c.hasNot) {
			if got[name] {
				t.Errorf("%q measures %s", c.args, name)
			}
		}
		var measures []string
		for _, m := range p.Measures {
			measures = append(measures, m.Name)
		}
		if c.measures != "" && strings.Join(measures, " ") != c.measures {
			t.Errorf("%q takes %v, want %s", c.args, measures, c.measures)
		}
	}
}

func TestBenchLabRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--rounds 0":            "want a number above 0",
		"--only nobody":         "no system is called nobody",
		"--measures speed":      "no measure is called speed",
		"--rival etcd=/bin/sh":  "want name=path",
		"--rival nebula":        "want name=path",
		"--rival nebula=/dev/x": "binary for nebula",
		"--flanneld ./no-such":  "binary for flannel-udp",
	} {
		if _, err := planOf(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", args, err, want)
		}
	}
}

func TestBenchLabPrograms(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("flanneld", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := planOf(t, "--flanneld", "./flanneld", "--rival", "nebula=/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Programs.Rivals; got["flannel-udp"] != filepath.Join(dir, "flanneld") || got["nebula"] != "/bin/sh" || len(got) != 2 {
		t.Errorf("%v", got)
	}
	if p.Programs.Muslin == "" || p.Programs.Version == "" {
		t.Errorf("%+v", p.Programs)
	}
}

func TestBenchLabList(t *testing.T) {
	var out bytes.Buffer
	cmd := newBenchLabCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--list"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kernel-vxlan-notunnel", "muslin-udp:none", "flannel, udp backend", "tcp-latency", "TCP p99.9 (µs)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not listed:\n%s", want, out.String())
		}
	}
}

func TestProgressLine(t *testing.T) {
	var out strings.Builder
	p := newProgressLine(&out)
	step := compare.Progress{Text: "round 1", Done: 1, Total: 4, Left: 90 * time.Second}
	p.show(step)
	p.show(step) // too soon after the first
	p.show(compare.Progress{Text: "not measured: tinc", News: true})
	p.end()
	if want := " 25 %, 1m30s left: round 1\nnot measured: tinc\n"; out.String() != want {
		t.Errorf("without a terminal: %q, want %q", out.String(), want)
	}

	out.Reset()
	p = newProgressLine(&out)
	p.terminal = true
	p.show(step)
	p.show(compare.Progress{Text: "news", News: true})
	p.end()
	if want := "\r\033[K 25 %, 1m30s left: round 1\r\033[Knews\n\r\033[K"; out.String() != want {
		t.Errorf("on a terminal: %q, want %q", out.String(), want)
	}
}
