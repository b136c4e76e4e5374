//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func TestChecksum(t *testing.T) {
	// RFC 1071, section 3: the example's sum is ddf2.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum %#x", got)
	}
	if got := checksum([]byte{0xff}); got != 0x00ff {
		t.Errorf("checksum of an odd byte %#x", got)
	}
}

func TestParseIperf(t *testing.T) {
	got, err := parseIperf([]byte(`{"end":{"sum":{"lost_packets":3,"packets":1000},"sum_received":{"bytes":125,"bits_per_second":1000.5}}}`))
	if want := (Flow{BitsPerSecond: 1000.5, Bytes: 125, Packets: 1000, Lost: 3}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseIperf([]byte(`{"start":{},"error":"unable to connect"}`)); err == nil || err.Error() != "unable to connect" {
		t.Errorf("error inside the JSON: %v", err)
	}
	if _, err := parseIperf([]byte("iperf3: error")); err == nil {
		t.Error("output that is not JSON: no error")
	}
}

func TestParseSubnetEnv(t *testing.T) {
	const good = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	got, err := ParseSubnetEnv(good)
	if want := (PodNetwork{Gateway: netip.MustParsePrefix("10.244.1.1/24"), MTU: 1450}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for name, bad := range map[string]string{
		"empty":            "",
		"no MTU":           strings.Replace(good, "FLANNEL_MTU=1450\n", "", 1),
		"empty IPMASQ":     strings.Replace(good, "=false", "=", 1),
		"no number":        strings.Replace(good, "1450", "big", 1),
		"negative":         strings.Replace(good, "1450", "-1", 1),
		"no prefix":        strings.Replace(good, "10.244.1.1/24", "10.244.1.1", 1),
		"network no CIDR":  strings.Replace(good, "10.244.0.0/16", "all", 1),
		"not an assigment": good + "hello\n",
	} {
		if got, err := ParseSubnetEnv(bad); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestProcessStart(t *testing.T) {
	mine, err := processStart(os.Getpid())
	if err != nil || mine == 0 {
		t.Errorf("start of this process: %d, %v", mine, err)
	}
	parent, err := processStart(os.Getppid())
	if err != nil || parent > mine {
		t.Errorf("parent started at %d, this process at %d (%v)", parent, mine, err)
	}
}

func TestCommandLine(t *testing.T) {
	got := commandLine([]string{"sh", "-c", "echo it's", "", "a=b"})
	if want := `sh -c 'echo it'\''s' '' a=b`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// fakeT records what a requirement does to a test.
type fakeT struct{ skipped, failed string }

func (*fakeT) Helper()                     {}
func (f *fakeT) Skipf(s string, a ...any)  { f.skipped = fmt.Sprintf(s, a...) }
func (f *fakeT) Fatalf(s string, a ...any) { f.failed = fmt.Sprintf(s, a...) }

func TestRequireTool(t *testing.T) {
	t.Setenv("CI", "")
	var f fakeT
	RequireTool(&f, "sh")
	if f != (fakeT{}) {
		t.Errorf("with a tool that is there: %+v", f)
	}
	t.Setenv("PATH", t.TempDir())
	RequireTool(&f, "iperf3", "bridge", "ip")
	if f.failed != "" || !strings.Contains(f.skipped, "apt-get install iperf3 iproute2`") {
		t.Errorf("without CI: %+v; want a skip that says what to install", f)
	}
	t.Setenv("CI", "true")
	f = fakeT{}
	RequireTool(&f, "iperf3")
	if !strings.Contains(f.failed, "iperf3") {
		t.Errorf("with CI: %+v; want a failure", f)
	}
}
