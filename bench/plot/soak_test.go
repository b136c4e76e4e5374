package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"muslin/bench/soak"
)

func TestSoakIsDrawn(t *testing.T) {
	dir := t.TempDir()
	r := &soak.Results{Length: 1800, Daemons: []soak.Daemon{{Name: "h2"}, {Name: "h3"}}}
	for i := range r.Daemons {
		for n := range 20 {
			r.Daemons[i].Samples = append(r.Daemons[i].Samples, soak.Sample{At: float64(n) * 90, Resident: 40e6, Goroutines: 36, Descriptors: 68})
		}
	}
	if err := r.Write(filepath.Join(dir, soak.JSONFile)); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{dir}); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "soak.svg"))
	if err != nil {
		t.Fatal(err)
	}
	seen := texts(t, string(svg))
	for _, want := range []string{"Resident memory, MB", "Goroutines", "File descriptors", "Packets dropped since the start", "minutes", "h2", "h3", "30", "40"} {
		if !slices.Contains(seen, want) {
			t.Errorf("%q is not in the picture: %q", want, seen)
		}
	}
}
