package lease

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"muslin/encap"
)

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) count(text string) int { return strings.Count(l.String(), text) }

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func mac(t *testing.T, s string) encap.MAC {
	t.Helper()
	m, err := encap.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func vxlanAttrs(t *testing.T, ip, hw string) Attrs {
	return Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: BackendVXLAN, VNI: vni(t, 1), MAC: mac(t, hw)}
}

func TestAttrsAreFlannels(t *testing.T) {
	for _, text := range []string{
		// Seen in a store that flannel nodes wrote.
		`{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`,
		`{"PublicIP":"192.0.2.2","PublicIPv6":null}`,
		`{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"},"BackendV6Data":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`,
		`{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=","Port":51820}}`,
		`{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"host-gw"}`,
	} {
		a, err := DecodeAttrs([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		back, err := json.Marshal(a)
		if err != nil || string(back) != text {
			t.Errorf("round trip:\n got %s, %v\nwant %s", back, err, text)
		}
	}
	for _, text := range []string{flannelDual, flannelSix} {
		a, err := DecodeAttrs([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if want := mac(t, "76:0a:15:7b:a4:2c"); a.MAC6 != want || a.VNI6 != vni(t, 1) || a.BackendData != nil || a.BackendV6Data != nil {
			t.Errorf("%s: the IPv6 half is %s, %s", text, a.VNI6, a.MAC6)
		}
		if back, err := json.Marshal(a); err != nil || string(back) != text {
			t.Errorf("round trip:\n got %s, %v\nwant %s", back, err, text)
		}
	}
	own := vxlanAttrs(t, "192.0.2.2", "be:e3:93:3d:62:d0")
	got, err := json.Marshal(own)
	want := `{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := json.Marshal(Attrs{}); err == nil {
		t.Error("a lease without PublicIP can be written")
	}
}

// What flannel v0.26.7 makes of its LeaseAttrs with json.Marshal, where its vxlan backend has filled in both halves,
// or only that of IPv6.
const (
	flannelDual = `{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::1:0:0:2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"},"BackendV6Data":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}`
	flannelSix  = `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::2","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}`
)

// dualAttrs are those of flannelDual, with another PublicIPv6.
func dualAttrs(t *testing.T, ip, ip6 string) Attrs {
	a := vxlanAttrs(t, ip, "be:e3:93:3d:62:d0")
	a.PublicIPv6, a.VNI6, a.MAC6 = netip.MustParseAddr(ip6), vni(t, 1), mac(t, "76:0a:15:7b:a4:2c")
	return a
}

func TestAttrsOfBothFamilies(t *testing.T) {
	dual := dualAttrs(t, "192.0.2.2", "2001:db8::1:0:0:2")
	if got, err := json.Marshal(dual); err != nil || string(got) != flannelDual {
		t.Errorf("got %s, %v", got, err)
	}
	six := Attrs{PublicIPv6: netip.MustParseAddr("2001:db8::2"), BackendType: BackendVXLAN, VNI6: vni(t, 1), MAC6: dual.MAC6}
	if got, err := json.Marshal(six); err != nil || string(got) != flannelSix {
		t.Errorf("got %s, %v", got, err)
	}
	for _, test := range []struct {
		attrs Attrs
		want  string
	}{
		{dual, "192.0.2.2 and 2001:db8::1:0:0:2 (vxlan, VNI 1, be:e3:93:3d:62:d0 and 76:0a:15:7b:a4:2c)"},
		{six, "2001:db8::2 (vxlan, VNI 1, 76:0a:15:7b:a4:2c)"},
		{Attrs{PublicIPv6: six.PublicIPv6, BackendType: BackendUDP}, "2001:db8::2 (udp)"},
	} {
		if got := test.attrs.String(); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
	// Each field of the IPv6 half makes another value of it.
	for _, change := range []func(*Attrs){
		func(a *Attrs) { a.PublicIPv6 = six.PublicIPv6 },
		func(a *Attrs) { a.VNI6 = vni(t, 2) },
		func(a *Attrs) { a.MAC6[5]++ },
		func(a *Attrs) { a.MAC6, a.VNI6 = encap.MAC{}, encap.VNI{} },
	} {
		other := dual
		change(&other)
		if dual.Equal(other) || other.String() == dual.String() {
			t.Errorf("%s counts as %s", other, dual)
		}
	}

	// flannel reads a PublicIP that is not there as 0.0.0.0.
	missing, err := DecodeAttrs([]byte(strings.Replace(flannelSix, `"PublicIP":"0.0.0.0",`, "", 1)))
	if err != nil || !missing.Equal(six) {
		t.Errorf("without a PublicIP: %s, %v", missing, err)
	}
	// An IPv6 half that is broken leaves the IPv4 half as it is, and stays as it was found.
	for _, data := range []string{`[]`, `{"VNI":1}`, `{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`, `{"VNI":16777216,"VtepMAC":"76:0a:15:7b:a4:2c"}`} {
		text := strings.Replace(flannelDual, `{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}`, data, 1)
		a, err := DecodeAttrs([]byte(text))
		if err != nil || a.MAC != dual.MAC || a.MAC6 != (encap.MAC{}) {
			t.Errorf("%s: %s, %v", text, a, err)
		}
		if back, err := json.Marshal(a); err != nil || string(back) != text {
			t.Errorf("round trip:\n got %s, %v\nwant %s", back, err, text)
		}
	}
}

func TestDecodeAttrsErrors(t *testing.T) {
	vx := func(data string) string {
		return `{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":` + data + `}`
	}
	for _, test := range []struct {
		in, want string
		publicIP bool // still known
	}{
		{``, "empty", false},
		{`garbage`, "not JSON", false},
		{`[]`, "JSON object", false},
		{`{}`, "PublicIP is missing or null", false},
		{`{"PublicIP":null,"PublicIPv6":null}`, "PublicIP is missing or null", false},
		{`{"PublicIP":"","PublicIPv6":null}`, `PublicIP "" is not an IP address`, false},
		{`{"PublicIP":"192.0.2.256"}`, "is not an IP address", false},
		{`{"PublicIP":"2001:db8::1"}`, "is not an IPv4 address", false},
		{`{"PublicIP":"0.0.0.0"}`, "not the address of one node", true},
		{`{"PublicIP":"224.0.0.1"}`, "not the address of one node", true},
		{`{"PublicIP":"127.0.0.1"}`, "not the address of one node", true},
		{`{"PublicIP":"::ffff:127.1.2.3"}`, "not the address of one node", true},
		{`{"PublicIP":"255.255.255.255"}`, "not the address of one node", true},
		{`{"PublicIP":17}`, "PublicIP is the number 17", false},
		{`{"PublicIP":null,"PublicIPv6":"2001:db8::1"}`, "PublicIP is missing or null", false},
		{`{"PublicIPv6":"ff02::1"}`, "PublicIPv6 ff02::1 is not the address of one node", false},
		{`{"PublicIP":"0.0.0.0","PublicIPv6":"::1"}`, "PublicIPv6 ::1 is not the address of one node", true},
		{`{"PublicIP":"0.0.0.0","PublicIPv6":"::"}`, "PublicIPv6 :: is not the address of one node", true},
		{`{"PublicIPv6":"fe80::1"}`, "PublicIPv6 fe80::1 is not the address of one node", false},
		{`{"PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`, "BackendV6Data: missing", false},
		{`{"PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1}}`, `BackendV6Data: VtepMAC "" is not`, false},
		{`{"PublicIP":"192.0.2.2","PublicIPv6":"x"}`, `PublicIPv6 "x"`, true},
		{`{"PublicIP":"192.0.2.2","PublicIPv6":"192.0.2.1"}`, "is not an IPv6", true},
		{`{"PublicIP":"192.0.2.2","BackendType":3}`, "BackendType is the number 3", true},
		{`{"PublicIP":"192.0.2.2","BackendType":"vxlan"}`, "BackendData: missing", true},
		{vx(`[]`), "BackendData: want a JSON object", true},
		{vx(`{"VNI":16777216,"VtepMAC":"be:e3:93:3d:62:d0"}`), "VNI is 16777216", true},
		{vx(`{"VNI":1}`), `VtepMAC "" is not`, true},
		{vx(`{"VNI":1,"VtepMAC":"be:e3:93:3d:62"}`), "is not an Ethernet address", true},
		{vx(`{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}`), "not the address of one VTEP", true},
		{vx(`{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}`), "not the address of one VTEP", true},
		{vx(`{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}`) + "x", "follows the end", false},
	} {
		a, err := DecodeAttrs([]byte(test.in))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.in, err, test.want)
		}
		if a.PublicIP.IsValid() != test.publicIP {
			t.Errorf("%s: PublicIP %v", test.in, a.PublicIP)
		}
	}
}

func TestParseKey(t *testing.T) {
	for _, test := range []struct{ key, v4, v6 string }{
		{"10.244.1.0-24", "10.244.1.0/24", ""},
		{"10.42.1.0-24&2001:cafe:42:1::-64", "10.42.1.0/24", "2001:cafe:42:1::/64"},
		{"0.0.0.0-0&2001:cafe:42:1::-64", "", "2001:cafe:42:1::/64"},
	} {
		v4, v6, err := ParseKey(test.key)
		if err != nil {
			t.Errorf("%s: %v", test.key, err)
		}
		if v4.IsValid() && v4.String() != test.v4 || !v4.IsValid() && test.v4 != "" || v6.IsValid() && v6.String() != test.v6 || !v6.IsValid() && test.v6 != "" {
			t.Errorf("%s: %s, %s", test.key, v4, v6)
		}
	}
	for _, key := range []string{"", "config", "10.244.1.0", "10.244.1.0/24", "10.244.1.0-", "10.244.1.0-33", "10.244.1.0-024", "010.244.1.0-24",
		"10.244.1.5-24", "10.244.1.0-24&", "10.244.1.0-24&10.0.0.0-8", "2001:cafe::-64", "10.244.1.0-24&2001:CAFE::-64", "10.244.1.0-24&2001:cafe::1-64",
		"10.244.1.0-24/x", "0.0.0.0-0", "::ffff:10.1.0.0-120", "10.244.1.0-24\n"} {
		if v4, v6, err := ParseKey(key); err == nil {
			t.Errorf("%q: %s, %s, want an error", key, v4, v6)
		}
	}
	if got := Key(netip.MustParsePrefix("10.244.1.7/24")); got != "10.244.1.0-24" {
		t.Errorf("Key: %s", got)
	}
	// As flannel's MakeSubnetKey writes them.
	v4, v6 := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("2001:db8:1::/64")
	for _, test := range []struct {
		v4, v6 netip.Prefix
		want   string
	}{
		{v4, netip.Prefix{}, "10.244.1.0-24"}, {v4, v6, "10.244.1.0-24&2001:db8:1::-64"}, {netip.Prefix{}, v6, "0.0.0.0-0&2001:db8:1::-64"},
	} {
		if got := LeaseKey(test.v4, test.v6); got != test.want {
			t.Errorf("LeaseKey(%s, %s) = %s, want %s", test.v4, test.v6, got, test.want)
		}
	}
}

func TestSubnetFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
	f := SubnetFile{Network: netip.MustParsePrefix("10.244.0.0/16"), Subnet: netip.MustParsePrefix("10.244.1.0/24"), MTU: 1450}
	if got, err := ReadSubnetFile(path); err != nil || got != (SubnetFile{}) {
		t.Fatalf("missing file: %v, %v", got, err)
	}
	for range 2 { // the second time over the first
		if err := f.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	want := "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Fatalf("%s, %v", got, err)
	}
	if got, err := ReadSubnetFile(path); err != nil || got != f {
		t.Fatalf("read back %v, %v", got, err)
	}
	for p, mode := range map[string]os.FileMode{path: 0o644, filepath.Dir(path): 0o755 | os.ModeDir} {
		if fi, err := os.Stat(p); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", p, fi.Mode(), err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	err := f.Write(filepath.Join(path, "below-a-file"))
	if err == nil || !strings.Contains(err.Error(), "--subnet-file") {
		t.Errorf("unwritable: %v", err)
	}
	blocked := t.TempDir() // a directory is where the file should be
	if err := f.Write(blocked); err == nil {
		t.Error("replaced a directory")
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(blocked), ".*")); err != nil || len(left) != 0 {
		t.Errorf("a failed write left %v, %v", left, err)
	}
	if _, err := ReadSubnetFile(blocked); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("read a directory: %v", err)
	}
}

// What flannel v0.26.7 writes with WriteSubnetFile, with both families and with IPv6 alone.
func TestSubnetFileWithIPv6(t *testing.T) {
	const (
		v4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
		v6 = "FLANNEL_IPV6_NETWORK=2001:db8:42::/56\nFLANNEL_IPV6_SUBNET=2001:db8:1::1/64\n"
	)
	f := SubnetFile{
		Network: netip.MustParsePrefix("10.244.0.0/16"), Subnet: netip.MustParsePrefix("10.244.1.0/24"),
		Network6: netip.MustParsePrefix("2001:db8:42::/56"), Subnet6: netip.MustParsePrefix("2001:db8:1::/64"), MTU: 1430, IPMasq: true,
	}
	six := f
	six.Network, six.Subnet, six.IPMasq = netip.Prefix{}, netip.Prefix{}, false
	for want, f := range map[string]SubnetFile{v4 + v6 + "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n": f, v6 + "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n": six} {
		if got := string(f.Bytes()); got != want {
			t.Errorf("written\n%swant\n%s", got, want)
		}
		if got := ParseSubnetFile([]byte(want)); got != f {
			t.Errorf("read %+v, want %+v", got, f)
		}
	}
	mixed := ParseSubnetFile([]byte("FLANNEL_SUBNET=2001:db8:1::1/64\nFLANNEL_IPV6_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=::ffff:10.244.0.0/112\n"))
	if mixed != (SubnetFile{}) {
		t.Errorf("read %+v out of fields of the other family", mixed)
	}
}

func TestParseSubnetFileGarbage(t *testing.T) {
	in := "\x00\nexport FLANNEL_SUBNET=\"10.244.7.1/24\"\nFLANNEL_NETWORK=10.244.0.0\nFLANNEL_MTU=-5\nFLANNEL_IPMASQ=TRUE\nOTHER\n=\nFLANNEL_MTU"
	want := SubnetFile{Subnet: netip.MustParsePrefix("10.244.7.0/24")}
	if got := ParseSubnetFile([]byte(in)); got != want {
		t.Errorf("got %+v", got)
	}
}

func FuzzAttrs(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`))
	f.Add([]byte(`{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::1","BackendType":"wireguard","BackendData":{"PublicKey":"a","Port":1}}`))
	f.Add([]byte(flannelDual))
	f.Add([]byte(flannelSix))
	f.Add([]byte(`{"PublicIPv6":"2001:db8::1","BackendV6Data":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := DecodeAttrs(data)
		if err != nil {
			return
		}
		wire, err := json.Marshal(a)
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		b, err := DecodeAttrs(wire)
		if err != nil {
			t.Fatalf("cannot read what was written, %s: %v", wire, err)
		}
		again, err := json.Marshal(b)
		if err != nil || string(again) != string(wire) {
			t.Fatalf("not stable: %s, then %s, %v", wire, again, err)
		}
		if !a.Equal(b) || a.String() != b.String() {
			t.Fatalf("%s comes back as %s", a, b)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add("10.244.1.0-24")
	f.Add("10.42.1.0-24&2001:cafe:42:1::-64")
	f.Add("0.0.0.0-0&::-0")
	f.Fuzz(func(t *testing.T, key string) {
		v4, v6, err := ParseKey(key)
		if err != nil {
			return
		}
		if text := LeaseKey(v4, v6); text != key {
			t.Fatalf("%q comes back as %q", key, text)
		}
	})
}

func FuzzSubnetFile(f *testing.F) {
	f.Add([]byte("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"))
	f.Add([]byte("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=2001:db8:42::/56\nFLANNEL_IPV6_SUBNET=2001:db8:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := ParseSubnetFile(data)
		if a.Network.IsValid() != a.Subnet.IsValid() || a.Network6.IsValid() != a.Subnet6.IsValid() {
			return
		}
		for _, s := range []netip.Prefix{a.Subnet, a.Subnet6} {
			if s.IsValid() && (s.Bits() == 0 || s.IsSingleIP()) {
				return // has no first host address
			}
		}
		if b := ParseSubnetFile(a.Bytes()); b != a {
			t.Fatalf("%+v comes back as %+v", a, b)
		}
	})
}
