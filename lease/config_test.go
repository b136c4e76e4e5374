package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muslin/encap"
)

func vni(t *testing.T, n uint32) encap.VNI {
	t.Helper()
	v, err := encap.NewVNI(n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestParseConfig(t *testing.T) {
	for _, test := range []struct {
		in                string
		network           string
		length            int
		first, last       string
		kind              string
		vni               uint32
		port              uint16
		count             int
		directRouting, mt bool
	}{
		{in: `{"Network":"10.244.0.0/16"}`,
			network: "10.244.0.0/16", length: 24, first: "10.244.1.0", last: "10.244.255.0", kind: "udp", port: 8285, count: 255},
		{in: `{"Network":"10.244.0.0/16","Backend":{"Type":"VXLAN"}}`,
			network: "10.244.0.0/16", length: 24, first: "10.244.1.0", last: "10.244.255.0", kind: "vxlan", vni: 1, port: 8472, count: 255},
		{in: `{"network":"10.244.0.0/22","BACKEND":{"type":"vxlan","vni":16777215,"port":4789,"mtu":1400,"DirectRouting":true}}`,
			network: "10.244.0.0/22", length: 24, first: "10.244.1.0", last: "10.244.3.0", kind: "vxlan", vni: 1<<24 - 1, port: 4789, count: 3, directRouting: true, mt: true},
		{in: `{"Network":"10.0.0.0/23"}`, network: "10.0.0.0/23", length: 25, first: "10.0.0.128", last: "10.0.1.128", kind: "udp", port: 8285, count: 3},
		{in: `{"Network":"10.0.0.0/28"}`, network: "10.0.0.0/28", length: 30, first: "10.0.0.4", last: "10.0.0.12", kind: "udp", port: 8285, count: 3},
		{in: `{"Network":"0.0.0.0/0","SubnetLen":30}`, network: "0.0.0.0/0", length: 30, first: "0.0.0.4", last: "255.255.255.252", kind: "udp", port: 8285, count: 1<<30 - 1},
		{in: `{"Network":"10.244.0.0/16","SubnetLen":18,"SubnetMin":"10.244.64.0","SubnetMax":"10.244.128.0","Backend":{"Type":"udp","Port":0}}`,
			network: "10.244.0.0/16", length: 18, first: "10.244.64.0", last: "10.244.128.0", kind: "udp", port: 8285, count: 2},
		{in: `{"Network":"10.244.0.0/16","SubnetLen":0,"SubnetMin":null,"Backend":{"Type":"udp","Port":65535}}`,
			network: "10.244.0.0/16", length: 24, first: "10.244.1.0", last: "10.244.255.0", kind: "udp", port: 65535, count: 255},
		{in: `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":0,"Port":0}}`,
			network: "10.244.0.0/16", length: 24, first: "10.244.1.0", last: "10.244.255.0", kind: "vxlan", vni: 0, port: 8472, count: 255},
	} {
		c, err := ParseConfig([]byte(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		b := c.Backend
		if c.Network.String() != test.network || c.SubnetLen != test.length || c.SubnetMin.String() != test.first || c.SubnetMax.String() != test.last {
			t.Errorf("%s: %s /%d %s to %s", test.in, c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax)
		}
		if b.Type != test.kind || b.VNI != vni(t, test.vni) || b.Port != test.port || b.DirectRouting != test.directRouting || (b.MTU == 1400) != test.mt {
			t.Errorf("%s: backend %+v", test.in, b)
		}
		if c.Subnets() != test.count {
			t.Errorf("%s: %d subnets, want %d", test.in, c.Subnets(), test.count)
		}
		if err := c.Supported(); err != nil {
			t.Errorf("%s: %v", test.in, err)
		}
	}
}

func TestParseConfigIPv6(t *testing.T) {
	c, err := ParseConfig([]byte(`{"EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"2001:db8:42::/56"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.IPv6SubnetLen != 64 || c.IPv6SubnetMin.String() != "2001:db8:42:1::" || c.IPv6SubnetMax.String() != "2001:db8:42:ff::" {
		t.Errorf("/%d %s to %s", c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax)
	}
}

// Every row breaks one rule. The words must be in the error, so that it names field, value and remedy.
func TestParseConfigErrors(t *testing.T) {
	v6 := `"Network":"10.244.0.0/16","EnableIPv6":true,`
	vx := func(s string) string { return `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan",` + s + `}}` }
	for _, test := range []struct{ in, want string }{
		{``, `empty`},
		{`{`, `ends too early`},
		{`[]`, `JSON object`},
		{`null`, `null`},
		{`{"Network":"10.244.0.0/16"} x`, `line 1, column 28: "x" follows the end`},
		{"{\n  \"Network\" \"10.244.0.0/16\"}", `line 2, column 13: not JSON`},
		{"{\n\"Network\":\"10.244.0.0/16\",\n \"SubnetLen\": x}", `line 3, column 15: not JSON`},
		{`{"Network":"10.244.0.0/16",}`, `not JSON`},
		{`{}`, `Network is missing`},
		{`{"Network":""}`, `Network "" is not a CIDR`},
		{`{"Network":5}`, `Network is the number 5: want a string`},
		{`{"Network":"10.244.0.0"}`, `Network "10.244.0.0" is not a CIDR`},
		{`{"Network":"10.244.0.0/33"}`, `is not a CIDR`},
		{`{"Network":"10.244.1.5/16"}`, `write 10.244.0.0/16`},
		{`{"Network":"2001:db8::/32"}`, `Network "2001:db8::/32" is not IPv4`},
		{`{"Network":"10.0.0.0/29"}`, `/29: want /28 or shorter`},
		{`{"Network":"10.0.0.0/16","SubnetLen":17}`, `SubnetLen is 17: want at least 18`},
		{`{"Network":"10.0.0.0/16","SubnetLen":31}`, `SubnetLen is 31: want a number from 0 to 30`},
		{`{"Network":"10.0.0.0/16","SubnetLen":-1}`, `SubnetLen is -1`},
		{`{"Network":"10.0.0.0/16","SubnetLen":"24"}`, `SubnetLen is the string "24"`},
		{`{"Network":"10.0.0.0/16","SubnetLen":24.5}`, `SubnetLen is the number 24.5`},
		{`{"Network":"10.0.0.0/16","SubnetLen":1e99}`, `SubnetLen is the number 1e99`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}`, `SubnetMin 10.1.0.0 lies outside Network 10.0.0.0/16`},
		{`{"Network":"10.0.0.0/16","SubnetMax":"10.1.0.0"}`, `SubnetMax 10.1.0.0 lies outside`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.1.1"}`, `write 10.0.1.0`},
		{`{"Network":"10.0.0.0/16","SubnetMax":"10.0.1.128"}`, `write 10.0.1.0`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"x"}`, `SubnetMin "x" is not an IP address`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"2001:db8::"}`, `SubnetMin "2001:db8::" is not an IPv4`},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}`, `SubnetMin 10.0.9.0 is above SubnetMax 10.0.8.0`},
		{`{"Network":"10.0.0.0/16","EnableIPv4":"yes"}`, `EnableIPv4 is the string "yes": want true or false`},
		{`{"Network":"10.0.0.0/16","EnableIPv4":false}`, `both false`},
		{`{` + v6 + `"IPv6Network":null}`, `IPv6Network is missing`},
		{`{` + v6 + `"IPv6Network":"10.0.0.0/8"}`, `is not IPv6`},
		{`{` + v6 + `"IPv6Network":"2001:db8::/125"}`, `want /124`},
		{`{` + v6 + `"IPv6Network":"2001:db8::/64","IPv6SubnetLen":127}`, `0 to 126`},
		{`{` + v6 + `"IPv6Network":"2001:db8::/64","IPv6SubnetLen":65}`, `at least 66`},
		{`{` + v6 + `"IPv6Network":"2001:db8::/56","IPv6SubnetMin":"2001:db8::1"}`, `write 2001:db8::`},
		{`{"Network":"10.0.0.0/16","Backend":null}`, `Backend is null`},
		{`{"Network":"10.0.0.0/16","Backend":"vxlan"}`, `Backend: want a JSON object {…}, have the string "vxlan"`},
		{`{"Network":"10.0.0.0/16","Backend":{}}`, `Backend.Type is missing`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":7}}`, `Backend.Type is the number 7`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"udp","Port":70000}}`, `Backend.Port is 70000: want a number from 0 to 65535; 0 means 8285`},
		{vx(`"VNI":16777216`), `Backend.VNI is 16777216: want a number from 0 to 16777215; a VNI has 24 bits`},
		{vx(`"VNI":-1`), `Backend.VNI is -1`},
		{vx(`"VNI":"1"`), `Backend.VNI is the string "1"`},
		{vx(`"Port":70000`), `Backend.Port is 70000`},
		{vx(`"Port":-1`), `Backend.Port is -1`},
		{vx(`"MTU":100`), `Backend.MTU is 100`},
		{vx(`"MTU":99999`), `Backend.MTU is 99999`},
		{vx(`"GBP":1`), `Backend.GBP is the number 1`},
		{vx(`"Learning":"x"`), `Backend.Learning`},
		{vx(`"DirectRouting":{}`), `Backend.DirectRouting is an object`},
	} {
		_, err := ParseConfig([]byte(test.in))
		if err == nil {
			t.Errorf("%s: no error, want %q", test.in, test.want)
			continue
		}
		if !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "network config: ") {
			t.Errorf("%s:\n got %v\nwant %s", test.in, err, test.want)
		}
	}
}

func TestConfigWarnings(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []string
	}{
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":1}}`, nil},
		{`{"Network":"10.0.0.0/16","SubnetLn":24,"IPv6Network":"anything"}`, []string{"field SubnetLn is not known and is ignored (did you mean SubnetLen?)"}},
		{`{"Network":"10.0.0.0/16","Flavour":1}`, []string{"field Flavour is not known and is ignored"}},
		{`{"Network":"10.1.0.0/16","NETWORK":"10.0.0.0/16"}`, []string{"field NETWORK is given more than once"}},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","DirectRoutin":true}}`, []string{"field Backend.DirectRoutin", "(did you mean DirectRouting?)"}},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"udp","VNI":3}}`, []string{"field Backend.VNI is not known"}},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"Host-GW"}}`, nil},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"host-gw","Port":3}}`, []string{"field Backend.Port is not known"}},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true,"GBP":true,"Learning":true}}`, []string{"group policies", "learns nothing"}},
	} {
		c, err := ParseConfig([]byte(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		all := strings.Join(c.Warnings, "\n")
		for _, want := range test.want {
			if !strings.Contains(all, want) {
				t.Errorf("%s: warnings %q lack %q", test.in, c.Warnings, want)
			}
		}
		if test.want == nil && all != "" {
			t.Errorf("%s: warnings %q, want none", test.in, c.Warnings)
		}
		if c.Network.String() != "10.0.0.0/16" {
			t.Errorf("%s: network %s", test.in, c.Network)
		}
	}
}

func TestSupported(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"ipip"}}`, `"ipip" is flannel's`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"IPSec","PSK":"x"}}`, `"ipsec" is flannel's, but this version carries vxlan, udp, host-gw and wireguard only`},
		{`{"Network":"10.0.0.0/16","Backend":{"Type":"vxlam"}}`, `did you mean vxlan?`},
	} {
		c, err := ParseConfig([]byte(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if err := c.Supported(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.in, err, test.want)
		}
	}
	for _, backend := range []string{`{"Type":"vxlan"}`, `{"Type":"vxlan","DirectRouting":true}`, `{"Type":"udp"}`, `{"Type":"host-gw"}`} {
		for _, four := range []string{`"Network":"10.0.0.0/16"`, `"EnableIPv4":false`} {
			in := `{` + four + `,"EnableIPv6":true,"IPv6Network":"2001:db8::/56","Backend":` + backend + `}`
			if c, err := ParseConfig([]byte(in)); err != nil {
				t.Errorf("%s: %v", in, err)
			} else if err := c.Supported(); err != nil {
				t.Errorf("%s: %v", in, err)
			}
		}
	}
}

func TestEnsureConfig(t *testing.T) {
	ctx := t.Context()
	m := NewMemStore()
	first := `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	if created, err := EnsureConfig(ctx, m, []byte(first)); err != nil || !created {
		t.Fatal(created, err)
	}
	same := `{"backend":{"Type":"VXLAN","VNI":1,"Port":8472},"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0"}`
	if created, err := EnsureConfig(ctx, m, []byte(same)); err != nil || created {
		t.Fatal(created, err)
	}
	other := `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`
	_, err := EnsureConfig(ctx, m, []byte(other))
	if err == nil || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "muslin config set") {
		t.Fatalf("got %v", err)
	}
	if raw, _, _ := m.Config(ctx); string(raw) != first {
		t.Fatalf("the config was changed to %s", raw)
	}
	if _, err := EnsureConfig(ctx, m, []byte(`{}`)); err == nil {
		t.Fatal("wrote or accepted a broken config")
	}
	gw := func(extra string) *Config {
		c, err := ParseConfig([]byte(`{"Network":"10.0.0.0/16","Backend":{"Type":"ipip"` + extra + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if gw(``).Means(gw(`,"X":1`)) || !gw(`,"X":1`).Means(gw(`, "X": 1`)) {
		t.Error("Means does not look into a backend of another type")
	}
}

// deaf does a write, or not, and does not answer.
type deaf struct {
	*MemStore
	does  bool
	times int
}

func (d *deaf) PutConfig(ctx context.Context, value []byte, revision int64) error {
	if d.times == 0 {
		return d.MemStore.PutConfig(ctx, value, revision)
	}
	d.times--
	if d.does {
		_ = d.MemStore.PutConfig(ctx, value, revision)
	}
	return ErrUnavailable
}

func TestEnsureConfigWaitsForTheStore(t *testing.T) {
	const text = `{"Network":"10.244.0.0/16"}`
	t.Run("no answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := NewMemStore()
			m.Fail(ErrUnavailable)
			time.AfterFunc(time.Hour, func() { m.Fail(nil) })
			if created, err := EnsureConfig(t.Context(), m, []byte(text)); err != nil || !created {
				t.Errorf("%v, %v", created, err)
			}
		})
	})
	for _, does := range []bool{true, false} {
		t.Run(fmt.Sprintf("answer lost, written: %v", does), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				if created, err := EnsureConfig(t.Context(), &deaf{m, does, 1}, []byte(text)); err != nil || !created {
					t.Errorf("%v, %v", created, err)
				}
				if raw, _, err := m.Config(t.Context()); err != nil || string(raw) != text {
					t.Errorf("%s, %v", raw, err)
				}
			})
		})
	}
	t.Run("ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := NewMemStore()
			m.Fail(ErrUnavailable)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := EnsureConfig(ctx, m, []byte(text)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			m.Fail(ErrDenied)
			if _, err := EnsureConfig(t.Context(), m, []byte(text)); !errors.Is(err, ErrDenied) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestWaitConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.Fail(ErrUnavailable)
		var log logBuffer
		begun := time.Now()
		time.AfterFunc(90*time.Second, func() { m.Fail(nil) })
		time.AfterFunc(150*time.Second+time.Millisecond, func() {
			_ = m.PutConfig(context.Background(), []byte(`{"Network":"10.244.0.0/16"}`), Absent)
		})
		c, raw, err := WaitConfig(t.Context(), m, log.logger())
		if err != nil || c.Network != netip.MustParsePrefix("10.244.0.0/16") || len(raw) == 0 {
			t.Fatal(c, err)
		}
		if took := time.Since(begun); took != 151*time.Second {
			t.Errorf("took %s, want 151 s", took)
		}
		// At 0 s and 60 s the store is gone, at 120 s it is empty.
		if a, b := log.count("cannot get the network config"), log.count("no network config"); a != 2 || b != 1 {
			t.Errorf("said %d and %d times, want 2 and 1:\n%s", a, b, log.String())
		}
		m.Fail(ErrDenied)
		if _, _, err := WaitConfig(t.Context(), m, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v, want ErrDenied", err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","Backend":{"Type":"vxlan"}}`))
	f.Add([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8::/56","Backend":{"Type":"udp","Port":8285}}`))
	f.Add([]byte(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::/0","IPv6SubnetMax":"0:1::"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if again, err := ParseConfig(data); err != nil || !c.Means(again) {
			t.Fatal("does not mean itself")
		}
		// What flannel's nodes rely on.
		for _, all := range []subnets{c.v4(), c.v6()} {
			if !all.enabled() {
				continue
			}
			if !c.Fits(netip.PrefixFrom(all.first, all.length)) || !c.Fits(netip.PrefixFrom(all.last, all.length)) || all.count() < 1 || c.Subnets() < 1 || !json.Valid(data) {
				t.Fatalf("%+v", c)
			}
			free := all.free(nil, 3)
			if len(free) != min(3, all.count()) {
				t.Fatalf("%d free subnets in %+v", len(free), c)
			}
			for _, p := range free {
				if !c.Fits(p) {
					t.Fatalf("%s does not fit %+v", p, c)
				}
			}
		}
	})
}
