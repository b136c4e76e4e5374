package soak

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// JSONFile is the name of the file with the results, which bench/plot draws.
const JSONFile = "soak.json"

// Results is a run.
type Results struct {
	Began   time.Time `json:"began"`
	Length  float64   `json:"seconds"`
	Kernel  string    `json:"kernel"`
	Cores   int       `json:"cores"`
	Daemons []Daemon  `json:"daemons"` // that ran the whole time
}

// Daemon is what one of them was seen to take, in the order of time.
type Daemon struct {
	Name    string   `json:"name"`
	Samples []Sample `json:"samples"`
}

// Sample is one look at a daemon.
type Sample struct {
	At          float64           `json:"at"` // seconds since the beginning
	Resident    int64             `json:"resident_bytes"`
	Goroutines  int               `json:"goroutines"`
	Descriptors int               `json:"descriptors"`
	Drops       map[string]uint64 `json:"drops"` // packets since its start, by reason
}

// Dropped is all drops.
func (s Sample) Dropped() uint64 {
	var n uint64
	for _, d := range s.Drops {
		n += d
	}
	return n
}

// SecondHalf is the samples after the middle of the run, when everything has found its size.
func (d Daemon) SecondHalf(length float64) []Sample {
	for i, s := range d.Samples {
		if s.At >= length/2 {
			return d.Samples[i:]
		}
	}
	return nil
}

// Growth is by how much a value grew over the samples, by the straight line that lies closest to them (least
// squares): a single peak or a saw's teeth hardly tilt it, a leak does.
func Growth(samples []Sample, value func(Sample) float64) float64 {
	n := float64(len(samples))
	if n < 2 {
		return 0
	}
	var meanX, meanY float64
	for _, s := range samples {
		meanX += s.At / n
		meanY += value(s) / n
	}
	var xy, xx float64
	for _, s := range samples {
		xy += (s.At - meanX) * (value(s) - meanY)
		xx += (s.At - meanX) * (s.At - meanX)
	}
	if xx == 0 {
		return 0
	}
	return xy / xx * (samples[len(samples)-1].At - samples[0].At)
}

// Mean of a value over the samples, of which there is at least one.
func Mean(samples []Sample, value func(Sample) float64) float64 {
	var sum float64
	for _, s := range samples {
		sum += value(s)
	}
	return sum / float64(len(samples))
}

// Read reads a file that Write wrote.
func Read(path string) (*Results, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Results
	if err := json.Unmarshal(content, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &r, nil
}

// Write replaces the file.
func (r *Results) Write(path string) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644)
}
