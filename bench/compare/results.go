package compare

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Schema is the version of results.json that this room writes. Fields may be added under the same number.
const Schema = 1

// Names of the files that Write makes.
const (
	JSONFile      = "results.json"
	BenchstatFile = "results.txt"
)

// Names of figures that are asked for by name.
const (
	figureTCP1       = "tcp-1"
	figureTCP4       = "tcp-4"
	figureUDP64      = "udp-64"
	figureLatency    = "tcp-latency-p50"
	figureCPU        = "cpu-machine"
	figureCPUDaemons = "cpu-daemons"
)

// Results is everything that a run found out: the content of results.json.
type Results struct {
	Schema   int       `json:"schema"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	Machine  Machine   `json:"machine"`
	Settings Settings  `json:"settings"`
	Systems  []Entry   `json:"systems"` // in the order of the tables
	Figures  []Figure  `json:"figures"` // in the order of the tables
	Samples  []Sample  `json:"samples"` // in the order in which they were taken
	Failures []Failure `json:"failures,omitempty"`
}

// Settings are what a run was asked for.
type Settings struct {
	Rounds   int `json:"rounds"`
	Seconds  int `json:"seconds"`   // of each measurement
	FixedPPS int `json:"fixed_pps"` // offered rate of the udp-…-fixed figures, in packets per second
	MTU      int `json:"mtu"`       // between the hosts, in bytes
}

// Entry is one system of the run.
type Entry struct {
	Name        string   `json:"name"`
	About       string   `json:"about"`
	Rival       bool     `json:"rival,omitempty"`        // another project's
	Rung        bool     `json:"rung,omitempty"`         // muslin with features switched off
	IPv6        bool     `json:"ipv6,omitempty"`         // inner and outer packets are IPv6
	Version     string   `json:"version,omitempty"`      // as the program says it; empty: the kernel's
	MTU         int      `json:"mtu,omitempty"`          // of the pods, in bytes
	Notes       []string `json:"notes,omitempty"`        // what a reader of its figures has to know
	NotMeasured string   `json:"not_measured,omitempty"` // why there is no figure of it
	Missing     bool     `json:"missing,omitempty"`      // with NotMeasured: because a program is not installed
}

// Figure is one column: something that is measured of every system.
type Figure struct {
	Name    string `json:"name"`    // "tcp-1"
	Measure string `json:"measure"` // the measurement that it comes from; a measurement may give several
	Title   string `json:"title"`   // "TCP, 1 stream"
	Unit    string `json:"unit"`    // "Gb/s"
	Lower   bool   `json:"lower"`   // whether less is better
}

// Sample is one figure of one system in one round.
type Sample struct {
	Round  int     `json:"round"` // from 1
	System string  `json:"system"`
	Figure string  `json:"figure"`
	Value  float64 `json:"value"` // in the figure's unit
}

// Failure is a measurement that gave no figures.
type Failure struct {
	Round   int    `json:"round"`
	System  string `json:"system"`
	Measure string `json:"measure"`
	Error   string `json:"error"`
}

// System is the entry of that name, or nil.
func (r *Results) System(name string) *Entry {
	if i := slices.IndexFunc(r.Systems, func(e Entry) bool { return e.Name == name }); i >= 0 {
		return &r.Systems[i]
	}
	return nil
}

// Broken lists the systems that could not be measured, wholly or in part, although nothing is missing. Rivals
// are not among them: that another project's program fails is a finding, not a fault of the run.
func (r *Results) Broken() []string {
	var names []string
	for _, e := range r.Systems {
		failed := slices.ContainsFunc(r.Failures, func(f Failure) bool { return f.System == e.Name })
		if !e.Rival && !e.Missing && (e.NotMeasured != "" || failed) {
			names = append(names, e.Name)
		}
	}
	return names
}

// Write writes results.json and results.txt into the directory, which it makes if need be. Each file appears
// whole or not at all.
func (r *Results) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	for name, content := range map[string][]byte{JSONFile: append(content, '\n'), BenchstatFile: []byte(r.Benchstat())} {
		if err := replaceFile(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	return nil
}

func replaceFile(path string, content []byte) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// Read reads a results.json.
func Read(path string) (*Results, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var r Results
	if err := json.Unmarshal(content, &r); err != nil {
		return nil, fmt.Errorf("read results: %s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("read results: %s has schema %d, this program knows %d: measure again", path, r.Schema, Schema)
	}
	return &r, nil
}
