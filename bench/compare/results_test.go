package compare

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestWriteAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "results")
	want := fakeResults()
	if err := want.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Read(filepath.Join(dir, JSONFile))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v\nwrote %+v", got, err, want)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%d files, %v; want the two results", len(files), err)
	}

	other := filepath.Join(dir, "other.json")
	if err := os.WriteFile(other, []byte(`{"schema":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(other); err == nil || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("another schema: %v", err)
	}
}

func TestBroken(t *testing.T) {
	r := fakeResults()
	r.Systems = append(r.Systems,
		Entry{Name: "no card", NotMeasured: "no such card"},
		Entry{Name: "another's", NotMeasured: "crashed", Rival: true})
	// nebula is missing, another's is another's.
	if got, want := r.Broken(), []string{"muslin-vxlan", "no card"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestBenchstat(t *testing.T) {
	r := fakeResults()
	r.Samples = []Sample{
		{1, Baseline, "tcp-1", 10}, {1, Baseline, "cpu-machine", 0.5},
		{1, "muslin-vxlan:none", "tcp-1", 1.25},
		{1, Baseline, "tcp-latency-p50", 30},
		{2, Baseline, "tcp-1", 11}, {2, Baseline, "cpu-machine", 1e-7},
	}
	const want = `goos: linux
goarch: amd64
pkg: muslin/bench/compare
cpu: A CPU
kernel: 6.18.1
Unit Gb/s better=higher
Unit cpu-machine-s/GB better=lower
Unit kpps better=higher
Unit loss-% better=lower
Unit p50-us better=lower

BenchmarkTCP1/system=kernel-vxlan 1 10 Gb/s 0.5 cpu-machine-s/GB
BenchmarkTCP1/system=muslin-vxlan:none 1 1.25 Gb/s
BenchmarkTCPLatency/system=kernel-vxlan 1 30 p50-us
BenchmarkTCP1/system=kernel-vxlan 1 11 Gb/s 1e-07 cpu-machine-s/GB
`
	if got := r.Benchstat(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReport(t *testing.T) {
	var b strings.Builder
	r := fakeResults()
	if err := r.WriteReport(&b); err != nil {
		t.Fatal(err)
	}
	const want = `A CPU, 2 cores, 0 MB; Linux 6.18.1 amd64, TCP cubic; muslin v1 (go1.26), iperf 3.12, sockperf 3.7; 0.0 % busy with all systems idle
3 rounds of 1 s each, 2026-03-01 12:00:00 to 12:10:00 UTC
Each cell: median (lowest–highest), ÷ kernel-vxlan of the same round

TCP throughput, Gb/s
              1 stream
kernel-vxlan  4.00  (2.00–10.0)  ×1.00
muslin-vxlan  3.00  (1.80–5.00)  ×0.75

UDP at full rate, thousand packets a second received, and loss in %
              64 B                      lost
kernel-vxlan  90.0  (80.0–100)  ×1.00  0     (0–50.0)
muslin-vxlan  155   (150–160)   ×1.75  12.5  (0–25.0)

TCP ping-pong, one way, µs
              p50
kernel-vxlan  30.0  (30.0–30.0)  ×1.00
muslin-vxlan  45.0  (42.0–60.0)  ×1.50

processor time for TCP, 1 stream, in seconds a gigabyte
              machine
kernel-vxlan  1.00  (1.00–1.00)  ×1.00

The ladder: muslin-vxlan without each feature; ÷ muslin-vxlan
                   TCP, Gb/s                 UDP 64 B, kpps         latency p50, µs           machine, s/GB
muslin-vxlan       3.00  (1.80–5.00)  ×1.00  155  (150–160)  ×1.00  45.0  (42.0–60.0)  ×1.00  -
muslin-vxlan:none  0.45  (0.38–1.00)  ×0.20  -                      -                         -

Systems
  kernel-vxlan       kernel VXLAN; pods' MTU 1450
  muslin-vxlan       muslin; v1; pods' MTU 1450
  muslin-vxlan:none  muslin without; v1; pods' MTU 1450; off: everything
  nebula             nebula; not measured: not installed: nebula
failed in round 3: udp-64 of muslin-vxlan: iperf3: no answer
`
	if got := squeeze(b.String()); got != squeeze(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	r.Machine.IdleCPU = 40
	b.Reset()
	if err := r.WriteReport(&b); err != nil || !strings.Contains(b.String(), "WARNING: the machine was 40 % busy") {
		t.Errorf("a busy machine goes without a warning (%v):\n%s", err, b.String())
	}
}

// squeeze takes away how the columns are aligned.
func squeeze(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.004: "0.00", 0.126: "0.13", 1.5: "1.50", 9.994: "9.99", 9.996: "10.0", 99.94: "99.9", 99.96: "100", 12345.6: "12346"} {
		if got := Number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
