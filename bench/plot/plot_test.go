package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muslin/bench/compare"
)

func sampleResults() *compare.Results {
	r := &compare.Results{
		Schema: compare.Schema,
		Systems: []compare.Entry{
			{Name: "plain"}, {Name: compare.Baseline}, {Name: "muslin-vxlan"},
			{Name: "muslin-vxlan:-udp-gso", Rung: true}, {Name: "muslin-udp:none", Rung: true},
			{Name: "nebula", Rival: true, NotMeasured: "not installed"},
		},
		Figures: []compare.Figure{
			{Name: "tcp-1", Measure: "tcp-1", Title: "TCP, 1 stream", Unit: "Gb/s"},
			{Name: "tcp-4", Measure: "tcp-4", Title: "TCP, 4 streams", Unit: "Gb/s"},
		},
	}
	for i, values := range [][]float64{{14, 15.25, 16}, {10, 11, 12.5}, {7, 7.5, 8}, {1, 2, 3}, {1, 2, 3}} {
		for round, v := range values {
			for _, figure := range []string{"tcp-1", "tcp-4"} {
				r.Samples = append(r.Samples, compare.Sample{Round: round + 1, System: r.Systems[i].Name, Figure: figure, Value: v})
			}
		}
	}
	return r
}

// texts are what a reader of the picture reads, in the order of the file.
func texts(t *testing.T, svg string) []string {
	t.Helper()
	var all []string
	inside := false
	for decoder := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			inside = token.Name.Local == "text"
		case xml.CharData:
			if inside {
				all = append(all, string(token))
			}
		case xml.EndElement:
			inside = false
		}
	}
}

func TestRunDraws(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "charts")
	if err := sampleResults().Write(from); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{from, to}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ has, hasNot []string }{
		"tcp.svg": {
			[]string{"TCP throughput", "Gb/s, more is better", "plain", "muslin-vxlan", "TCP, 4 streams", "kernel-vxlan, TCP, 1 stream", "15.2", "7.50"},
			[]string{"muslin-vxlan:-udp-gso", "-udp-gso", "nebula"},
		},
		"ladder.svg": {
			[]string{"muslin-vxlan", "-udp-gso", "2.00"},
			[]string{"plain", "none", "TCP, 4 streams"},
		},
	} {
		content, err := os.ReadFile(filepath.Join(to, name))
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, text := range texts(t, string(content)) {
			found[text] = true
		}
		for _, want := range c.has {
			if !found[want] {
				t.Errorf("%s lacks %q: %v", name, want, found)
			}
		}
		for _, bad := range c.hasNot {
			if found[bad] {
				t.Errorf("%s shows %q", name, bad)
			}
		}
		if !strings.Contains(string(content), "font-family:"+families) {
			t.Errorf("%s asks for a font that few have", name)
		}
	}
	if _, err := os.Stat(filepath.Join(to, "udp.svg")); err == nil {
		t.Error("a chart of what was not measured")
	}
}

func TestRunRefuses(t *testing.T) {
	empty := t.TempDir()
	if err := (&compare.Results{Schema: compare.Schema}).Write(empty); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"no directory":    nil,
		"too many":        {"a", "b", "c"},
		"nothing there":   {t.TempDir()},
		"nothing to draw": {empty},
	} {
		if err := run(args); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Bars of one group lie one above the other, first figure on top, and do not reach the next group.
func TestSpan(t *testing.T) {
	for of := 1; of <= 3; of++ {
		above := 5 + 0.5
		for figure := range of {
			b := bars{figure: figure, of: of}
			low, high := b.span(5)
			if high > above || low >= high || low < 4.5 {
				t.Errorf("figure %d of %d spans %v to %v", figure, of, low, high)
			}
			above = low + 1e-9
		}
	}
}
