//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
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

// The files are iperf3's output, 3.12 but where the name says otherwise, without its "start", "intervals" and
// "streams". The 3.7 one has 3.12's figures in the layout of that version.
func TestParseIperf(t *testing.T) {
	for name, want := range map[string]Flow{
		"tcp.json":     {BitsPerSecond: 19470985415.80213, Bytes: 2434007040, Seconds: 1.000055, Retransmits: 10816},
		"udp.json":     {BitsPerSecond: 63451989.4896396, Bytes: 7932736, Seconds: 1.000156, Packets: 206030, Received: 206030 - 82081, Lost: 82081},
		"paced.json":   {BitsPerSecond: 10211342.328835582, Bytes: 1277056, Seconds: 1.0005, Packets: 19984, Received: 19954},
		"reverse.json": {BitsPerSecond: 49297248.86602721, Bytes: 6162304, Seconds: 1.000024, Packets: 169340, Received: 169324 - 73038, Lost: 73038},
		"udp-3.7.json": {BitsPerSecond: 105476495.92092015, Bytes: 13185920, Seconds: 1.000156, Packets: 206030, Received: 206030 - 82081, Lost: 82081},
	} {
		content, err := os.ReadFile(filepath.Join("testdata", "iperf3", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseIperf(content); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
	}
	const unreachable = `{"start":{"connected":[]},"intervals":[],"end":{},"error":"unable to connect to server: Connection timed out"}`
	if _, err := parseIperf([]byte(unreachable)); err == nil || err.Error() != "unable to connect to server: Connection timed out" {
		t.Errorf("error inside the JSON: %v", err)
	}
	if _, err := parseIperf([]byte("iperf3: error")); err == nil {
		t.Error("output that is not JSON: no error")
	}
}

// The file is what ethtool 6.1 printed for a veth device.
func TestParseOffloads(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("testdata", "ethtool-veth.txt"))
	if err != nil {
		t.Fatal(err)
	}
	got := parseOffloads(string(content))
	for name, want := range map[string]bool{
		"tx-checksumming": true, "tx-udp_tnl-segmentation": true, "tx-udp-segmentation": true,
		"tx-checksum-ipv4": false, "generic-receive-offload": false, "rx-udp_tunnel-port-offload": false,
	} {
		if on, known := got[name]; !known || on != want {
			t.Errorf("%s: %v (known: %v), want %v", name, on, known, want)
		}
	}
	if _, known := got["Features for eth0"]; known {
		t.Error("the heading became an offload")
	}
	for name, want := range map[string]bool{
		"tx-udp-segmentation": true, "generic-receive-offload": true, "tx-checksum-ipv4": false, "no-such-offload": false,
	} {
		if can := canHave(string(content), name); can != want {
			t.Errorf("the device can have %s: %v, want %v", name, can, want)
		}
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

func TestStatField(t *testing.T) {
	const stat = "4711 (tmux: x) y) S 1 4711 4711 0 -1 4194304 1032 0 0 0 12 34 0 0 20 0 1 0 998877 5000000 800\n"
	for field, want := range map[int]uint64{statUserTime: 12, statSystemTime: 34, statStart: 998877} {
		if got, err := statField(stat, field); err != nil || got != want {
			t.Errorf("field %d: %d, %v; want %d", field, got, err, want)
		}
	}
	for _, bad := range []string{"", "4711 (sh", "4711 (sh) S 1 2 3"} {
		if got, err := statField(bad, statStart); err == nil {
			t.Errorf("%q: %d, want an error", bad, got)
		}
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

func TestParseMemory(t *testing.T) {
	const status = "Name:\tVmRSS: 1 kB\nVmPeak:\t 1262480 kB\nVmHWM:\t   31972 kB\nVmRSS:\t   20140 kB\nThreads:\t9\n"
	if m, err := parseMemory(status); err != nil || m.Resident != 20140<<10 || m.Peak != 31972<<10 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "Name:\tzombie\nState:\tZ (zombie)\n", "Name:\tx\nVmHWM:\tmany kB\nVmRSS:\t1 kB\n"} {
		if m, err := parseMemory(bad); err == nil {
			t.Errorf("%q gave %+v", bad, m)
		}
	}
}
