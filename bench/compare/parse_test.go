package compare

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testdata(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// The files are what sockperf 3.7 printed, colours and all.
func TestParsePingPong(t *testing.T) {
	for name, want := range map[string]map[string]float64{
		"sockperf-tcp.txt": {"p50": 32.853, "p99": 48.997, "p99.9": 111.851},
		"sockperf-udp.txt": {"p50": 27.711, "p99": 108.696, "p99.9": 219.797},
	} {
		if got, err := parsePingPong(testdata(t, name)); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	for name, c := range map[string]struct{ out, want string }{
		"unanswered": {testdata(t, "sockperf-unanswered.txt"), "Is the server down?"},
		"refused":    {"sockperf: == version #3.7-no.git ==\nsockperf: ERROR: Can`t connect socket (errno=111 Connection refused)\n", "Connection refused"},
		"nothing":    {"", "gave no p50"},
		"cut short":  {"sockperf: ---> percentile 50.000 =   32.853\n", "gave no p99"},
	} {
		if got, err := parsePingPong(c.out); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, got, err, c.want)
		}
	}
}

func TestParseBusy(t *testing.T) {
	// user 10, nice 20, system 30, idle 40000, iowait 500, irq 60, softirq 70, steal 8000, guest 5: busy 190.
	got, err := parseBusy("cpu  10 20 30 40000 500 60 70 8000 5 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
	if err != nil || got != 1900*time.Millisecond {
		t.Errorf("%v, %v; want 1.9s", got, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7\n", "cpu 1 2 3\n", "cpu 1 2 3 4 5 6 x\n"} {
		if got, err := parseBusy(bad); err == nil {
			t.Errorf("%q: %v, want an error", bad, got)
		}
	}
	if now, err := machineCPU(); err != nil || now <= 0 {
		t.Errorf("this machine: %v, %v", now, err)
	}
}

func TestParseCPUInfo(t *testing.T) {
	for _, c := range []struct {
		content    string
		model      string
		hypervisor bool
	}{
		{"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor lahf_lm\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC", true},
		{"model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu vme nohypervisor\n", "Intel(R) Xeon(R)", false},
		{"processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n", "Raspberry Pi 4 Model B", false},
		{"", "", false},
	} {
		if model, hypervisor := parseCPUInfo(c.content); model != c.model || hypervisor != c.hypervisor {
			t.Errorf("%q: %q, %v; want %q, %v", c.content, model, hypervisor, c.model, c.hypervisor)
		}
	}
}
