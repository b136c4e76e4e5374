package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/tunnel/fib"
)

const (
	keyOne = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
	keyTwo = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

func publicKey(t *testing.T, s string) fib.PublicKey {
	t.Helper()
	k, err := fib.ParsePublicKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wireguardValue(publicIP, key string) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":%q,"Port":51820}}`, publicIP, key)
}

func TestWireGuardAttrs(t *testing.T) {
	want := Attrs{PublicIP: netip.MustParseAddr("192.0.2.2"), BackendType: BackendWireGuard, Key: publicKey(t, keyOne), Port: 51820}
	got, err := DecodeAttrs([]byte(wireguardValue("192.0.2.2", keyOne)))
	if err != nil || !got.Equal(want) || got.String() != "192.0.2.2 (wireguard, port 51820, "+keyOne+")" {
		t.Errorf("%s, %v", got, err)
	}
	if text, err := json.Marshal(want); err != nil || string(text) != wireguardValue("192.0.2.2", keyOne) {
		t.Errorf("%s, %v", text, err)
	}
	for _, other := range []Attrs{
		{PublicIP: want.PublicIP, BackendType: BackendWireGuard, Key: publicKey(t, keyTwo), Port: 51820},
		{PublicIP: want.PublicIP, BackendType: BackendWireGuard, Key: want.Key, Port: 51821},
	} {
		if other.Equal(want) {
			t.Errorf("%s is taken for %s", other, want)
		}
	}
	// Older flannel nodes name no port.
	old := `{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"` + keyOne + `"}}`
	if a, err := DecodeAttrs([]byte(old)); err != nil || a.Port != 0 || a.Key != want.Key {
		t.Errorf("%s, %v", a, err)
	}
	for data, says := range map[string]string{
		``:                          "BackendData: missing",
		`,"BackendData":[]`:         "want a JSON object",
		`,"BackendData":{"Port":1}`: `PublicKey: "" is not a WireGuard public key`,
		`,"BackendData":{"PublicKey":"` + keyOne[:40] + `"}`:                                  "is not a WireGuard public key",
		`,"BackendData":{"PublicKey":"` + keyOne + `AAAA"}`:                                   "is not a WireGuard public key",
		`,"BackendData":{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`:         "it is zero",
		`,"BackendData":{"PublicKey":"` + keyOne + `","Port":65536}`:                          "Port is 65536",
		`,"BackendData":{"PublicKey":{}}`:                                                     "PublicKey is an object",
		`,"BackendData":{"PublicKey":"` + strings.Repeat(" ", 3) + keyOne + `","Port":51820}`: "is not a WireGuard public key",
	} {
		if strings.Count(data, "{") > strings.Count(data, "}") {
			data += "}"
		}
		if a, err := DecodeAttrs([]byte(`{"PublicIP":"192.0.2.2","BackendType":"wireguard"` + data + `}`)); err == nil || !strings.Contains(err.Error(), says) || !a.PublicIP.IsValid() {
			t.Errorf("%s: %s, %v; want %q", data, a, err, says)
		}
	}
}

func wireguardConfig(fields string) string {
	return `{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"` + fields + `}}`
}

func TestWireGuardConfig(t *testing.T) {
	for fields, want := range map[string]Backend{
		``: {Port: 51820, PortV6: 51821, Mode: ModeSeparate},
		`,"ListenPort":4500,"ListenPortV6":4501,"MTU":1400,"Mode":"auto","PersistentKeepaliveInterval":25,"PSK":"` + keyTwo + `"`: {
			Port: 4500, PortV6: 4501, MTU: 1400, Mode: ModeAuto, Keepalive: 25 * time.Second, PSK: PresharedKey(publicKey(t, keyTwo))},
		`,"ListenPort":0,"PSK":"","Mode":"ipv4"`: {Port: 51820, PortV6: 51821, Mode: ModeIPv4},
	} {
		c, err := ParseConfig([]byte(wireguardConfig(fields)))
		if err != nil {
			t.Errorf("%s: %v", fields, err)
			continue
		}
		if err := c.Supported(); err != nil || len(c.Warnings) != 0 {
			t.Errorf("%s: %v, %q", fields, err, c.Warnings)
		}
		want.Type, want.Raw = BackendWireGuard, c.Backend.Raw
		if got := c.Backend; fmt.Sprint(got) != fmt.Sprint(want) || got.PSK != want.PSK {
			t.Errorf("%s: %+v", fields, got)
		}
	}
	secret := "c2VjcmV0IHRoYXQgaXMgbm8ga2V5"
	for fields, says := range map[string]string{
		`,"ListenPort":65536`:                       "Backend.ListenPort is 65536",
		`,"ListenPortV6":"x"`:                       "Backend.ListenPortV6 is the string",
		`,"MTU":100`:                                "Backend.MTU is 100",
		`,"PersistentKeepaliveInterval":-1`:         "want a number from 0 to 65535; it is in seconds",
		`,"PersistentKeepaliveInterval":"25s"`:      "it is in seconds",
		`,"Mode":"both"`:                            `Backend.Mode "both" is not known: use separate, auto, ipv4 or ipv6`,
		`,"PSK":"` + secret + `"`:                   "Backend.PSK is not a preshared key: want 44 characters of base64",
		`,"PSK":{"` + secret + `":1}`:               "Backend.PSK is not a preshared key",
		`,"PSK":"` + strings.Repeat("A", 43) + `="`: "Backend.PSK is not a preshared key",
	} {
		if _, err := ParseConfig([]byte(wireguardConfig(fields))); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v; want %q", fields, err, says)
		}
	}
	const both, sixAlone = `"EnableIPv6":true,"IPv6Network":"2001:db8::/56",`, `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/56",`
	for _, test := range []struct{ families, fields, says string }{
		{``, `,"Mode":"ipv6"`, `Backend.Mode "ipv6" goes over IPv6, but EnableIPv6 is false`},
		{sixAlone, `,"Mode":"ipv4"`, `Backend.Mode "ipv4" goes over IPv4, but EnableIPv4 is false`},
		{both, `,"ListenPortV6":51820`, `Backend.ListenPort and Backend.ListenPortV6 are both 51820`},
		{``, `,"ListenPortV6":51820`, ``},
		{both, `,"ListenPortV6":51820,"Mode":"auto"`, ``},
		{both, `,"Mode":"ipv4"`, ``},
		{both, `,"Mode":"ipv6"`, ``},
		{both, ``, ``},
		{sixAlone, ``, ``},
		{sixAlone, `,"Mode":"ipv6"`, ``},
	} {
		c, err := ParseConfig([]byte(strings.Replace(wireguardConfig(test.fields), "{", "{"+test.families, 1)))
		if err != nil {
			t.Errorf("%s%s: %v", test.families, test.fields, err)
		} else if err := c.Supported(); (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s%s: %v; want %q", test.families, test.fields, err, test.says)
		}
	}
	if c, err := ParseConfig([]byte(wireguardConfig(`,"Port":51820`))); err != nil || !strings.Contains(strings.Join(c.Warnings, ""), "Backend.Port is not known") {
		t.Errorf("a field of another backend: %q, %v", c.Warnings, err)
	}
}

// A preshared key is in the config that is spoken of, and not in what is said.
func TestPresharedKeyIsHidden(t *testing.T) {
	config := wireguardConfig(`, "psk" : "` + keyTwo + `"`)
	if text, secret := HideSecret(config); !secret || strings.Contains(text, keyTwo) || strings.ReplaceAll(text, `"PSK"`, `"`+keyTwo+`"`) != config {
		t.Errorf("%s, %v", text, secret)
	}
	for _, plain := range []string{wireguardConfig(``), wireguardConfig(`,"PSK":""`), `{`, ``, `{"Backend":3}`, `{"Network":"10.0.0.0/8"}`} {
		if text, secret := HideSecret(plain); secret || text != plain {
			t.Errorf("%s: %s, %v", plain, text, secret)
		}
	}
	broken := strings.TrimSuffix(config, "}")
	for _, text := range []string{broken, broken[:len(broken)-5]} {
		if got, secret := HideSecret(text); !secret || strings.Contains(got, keyTwo[:20]) {
			t.Errorf("%s, %v", got, secret)
		}
	}
	c, err := ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	backend := c.Backend
	backend.Raw = nil
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		text := fmt.Sprintf(verb+" "+verb, backend, backend.PSK)
		if !strings.Contains(text, "(hidden)") || strings.Contains(text, fmt.Sprintf("%d", backend.PSK[0])+" "+fmt.Sprintf("%d", backend.PSK[1])) || strings.Contains(text, keyTwo) {
			t.Errorf("%s: %s", verb, text)
		}
	}
	m := NewMemStore()
	if _, err := EnsureConfig(t.Context(), m, []byte(config)); err != nil {
		t.Fatal(err)
	}
	_, err = EnsureConfig(t.Context(), m, []byte(wireguardConfig(`,"PSK":"`+keyOne+`"`)))
	if err == nil || strings.Contains(err.Error(), keyTwo) || strings.Contains(err.Error(), keyOne) {
		t.Errorf("%v", err)
	}
}

func TestWireGuardPeers(t *testing.T) {
	log := new(logBuffer)
	node := Node{Subnet: netip.MustParsePrefix("10.244.1.0/24"), PublicIP: netip.MustParseAddr("192.0.2.1"), Backend: BackendWireGuard, Key: publicKey(t, keyOne)}
	r := newRoster(node, log.logger())
	r.replace([]Entry{
		{Key: "10.244.1.0-24", Value: []byte(wireguardValue("192.0.2.1", keyOne))},
		{Key: "10.244.2.0-24", Value: []byte(wireguardValue("192.0.2.2", keyTwo))},
		{Key: "10.244.3.0-24", Value: []byte(wireguardValue("192.0.2.3", keyOne))},
		{Key: "10.244.4.0-24", Value: []byte(vxlanValue("192.0.2.4", 1, macA))},
	})
	table, _ := r.update()
	peers := table.Peers()
	if len(peers) != 1 || peers[0].Key != publicKey(t, keyTwo) || peers[0].Port != 51820 || r.skipped[SkipKeyOurs] != 1 || r.skipped[SkipBackend] != 1 {
		t.Errorf("%+v, %v", peers, r.skipped)
	}
	if log.count("another host has our WireGuard key") != 1 {
		t.Error(log.String())
	}
	// A new key is a change of the peer.
	r.set(Entry{Key: "10.244.2.0-24", Value: []byte(wireguardValue("192.0.2.2", "L+V9o0fNYkMVKNqsX7spBzD/9oSvxM/C7ZCZX1jLO3Q="))})
	if table, changed := r.update(); !changed || table.Peers()[0].Key == peers[0].Key || table.Peers()[0].Counters != peers[0].Counters {
		t.Errorf("%+v, %v", table.Peers()[0], changed)
	}
}

// The IPv6 half of a lease, as flannel writes it and as we do.
func TestWireGuardAttrsOfBothFamilies(t *testing.T) {
	one, two := publicKey(t, keyOne), publicKey(t, keyTwo)
	data := func(key string) string { return `{"PublicKey":"` + key + `"}` }
	value := func(four, six, four4, six6 string) string {
		return `{"PublicIP":"` + four + `","PublicIPv6":` + six + `,"BackendType":"wireguard"` + four4 + six6 + `}`
	}
	const four, six, ip4, ip6 = `,"BackendData":`, `,"BackendV6Data":`, "192.0.2.2", `"2001:db8::2"`
	a4, a6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, test := range []struct {
		value string
		want  Attrs
		text  string
	}{
		{value(ip4, ip6, four+data(keyOne), six+data(keyOne)), Attrs{PublicIP: a4, PublicIPv6: a6, Key: one, Key6: one}, "192.0.2.2 and 2001:db8::2 (wireguard, port 0, " + keyOne + ")"},
		{value("0.0.0.0", ip6, "", six+data(keyOne)), Attrs{PublicIPv6: a6, Key6: one}, "2001:db8::2 (wireguard, port 0, " + keyOne + ")"},
		{value(ip4, ip6, four+data(keyOne), six+data(keyTwo)), Attrs{PublicIP: a4, PublicIPv6: a6, Key: one, Key6: two}, "192.0.2.2 and 2001:db8::2 (wireguard, port 0 and 0, " + keyOne + " and " + keyTwo + ")"},
		// What is wrong with the IPv6 half costs that half only.
		{value(ip4, ip6, four+data(keyOne), six+`{"PublicKey":"x"}`), Attrs{PublicIP: a4, PublicIPv6: a6, Key: one, BackendV6Data: json.RawMessage(`{"PublicKey":"x"}`)}, "192.0.2.2 and 2001:db8::2 (wireguard, port 0, " + keyOne + ")"},
	} {
		test.want.BackendType = BackendWireGuard
		if got, err := DecodeAttrs([]byte(test.value)); err != nil || !got.Equal(test.want) || got.String() != test.text {
			t.Errorf("%s: %s, %v", test.value, got, err)
		}
	}
	for value, says := range map[string]string{
		value("0.0.0.0", ip6, "", ""):                   "BackendV6Data: missing",
		value("0.0.0.0", ip6, four+data(keyOne), ""):    "BackendV6Data: missing",
		value("0.0.0.0", ip6, "", six+data("c2hvcnQ=")): "BackendV6Data: PublicKey",
		value(ip4, ip6, "", six+data(keyOne)):           "BackendData: missing",
	} {
		if a, err := DecodeAttrs([]byte(value)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %s, %v; want %q", value, a, err, says)
		}
	}
	ours := Attrs{PublicIP: a4, PublicIPv6: a6, BackendType: BackendWireGuard, Key: one, Port: 51820, Key6: one, Port6: 51821}
	text, err := json.Marshal(ours)
	if want := `{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db8::2","BackendType":"wireguard","BackendData":{"PublicKey":"` + keyOne + `","Port":51820},"BackendV6Data":{"PublicKey":"` + keyOne + `","Port":51821}}`; err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
	if back, err := DecodeAttrs(text); err != nil || !back.Equal(ours) || !strings.Contains(back.String(), "port 51820 and 51821, "+keyOne+")") {
		t.Errorf("%s, %v", back, err)
	}
	for _, other := range []func(*Attrs){func(a *Attrs) { a.Key6 = two }, func(a *Attrs) { a.Port6 = 1 }} {
		changed := ours
		if other(&changed); changed.Equal(ours) {
			t.Errorf("%s is taken for %s", changed, ours)
		}
	}
	alone := Attrs{PublicIPv6: a6, BackendType: BackendWireGuard, Key6: one, Port6: 51821}
	if text, err := json.Marshal(alone); err != nil || string(text) != `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::2","BackendType":"wireguard","BackendV6Data":{"PublicKey":"`+keyOne+`","Port":51821}}` {
		t.Errorf("%s, %v", text, err)
	}
}

// What each Mode makes of the same leases: which peers, at which address, and who is left out. The addresses of auto are
// those that flannel's selectPublicEndpoint gives.
func TestWireGuardPeersByMode(t *testing.T) {
	value := func(four, six string) string {
		half := func(name string, port int) string {
			return fmt.Sprintf(`,"%s":{"PublicKey":%q,"Port":%d}`, name, keyTwo, port)
		}
		text := `{"PublicIP":"` + four + `","PublicIPv6":null,"BackendType":"wireguard"`
		if six != "" {
			text = strings.Replace(text, "null", `"`+six+`"`, 1) + half("BackendV6Data", 6)
		}
		if four != "0.0.0.0" {
			text += half("BackendData", 4)
		}
		return text + "}"
	}
	entries := []Entry{
		{Key: "10.244.2.0-24&2001:db8:2::-64", Value: []byte(value("10.1.0.2", "2001:db9::2"))},
		{Key: "10.244.3.0-24&2001:db8:3::-64", Value: []byte(value("192.0.2.3", "2001:db9::3"))},
		{Key: "10.244.4.0-24&2001:db8:4::-64", Value: []byte(value("10.1.0.4", "fd00::4"))},
		{Key: "10.244.5.0-24", Value: []byte(value("10.1.0.5", ""))},
		{Key: "0.0.0.0-0&2001:db8:6::-64", Value: []byte(value("0.0.0.0", "2001:db9::6"))},
		{Key: "10.244.7.0-24&2001:db8:7::-64", Value: []byte(value("10.244.9.9", "2001:db8:9::9"))}, // inside the overlay
	}
	const public, private = "2001:db9::1", "fd00::1"
	four := "10.244.2.0/24>10.1.0.2:4 10.244.3.0/24>192.0.2.3:4 10.244.4.0/24>10.1.0.4:4 10.244.5.0/24>10.1.0.5:4"
	for _, test := range []struct {
		name, mode, six string
		want            string
		endpoint        int // left out for want of an address
	}{
		{"separate", ModeSeparate, public, four + " 2001:db8:2::/64>[2001:db9::2]:6 2001:db8:3::/64>[2001:db9::3]:6 2001:db8:4::/64>[fd00::4]:6 2001:db8:6::/64>[2001:db9::6]:6", 0},
		{"ipv4", ModeIPv4, public, "10.244.2.0/24>10.1.0.2:6 10.244.3.0/24>192.0.2.3:6 10.244.4.0/24>10.1.0.4:6 10.244.5.0/24>10.1.0.5:4 " +
			"2001:db8:2::/64>10.1.0.2:6 2001:db8:3::/64>192.0.2.3:6 2001:db8:4::/64>10.1.0.4:6", 1},
		{"ipv6", ModeIPv6, public, "10.244.2.0/24>[2001:db9::2]:6 10.244.3.0/24>[2001:db9::3]:6 10.244.4.0/24>[fd00::4]:6 " +
			"2001:db8:2::/64>[2001:db9::2]:6 2001:db8:3::/64>[2001:db9::3]:6 2001:db8:4::/64>[fd00::4]:6 2001:db8:6::/64>[2001:db9::6]:6", 1},
		{"auto", ModeAuto, public, "10.244.2.0/24>[2001:db9::2]:6 10.244.3.0/24>192.0.2.3:6 10.244.4.0/24>10.1.0.4:6 10.244.5.0/24>10.1.0.5:4 " +
			"2001:db8:2::/64>[2001:db9::2]:6 2001:db8:3::/64>192.0.2.3:6 2001:db8:4::/64>10.1.0.4:6 2001:db8:6::/64>[2001:db9::6]:6", 0},
		{"auto, our IPv6 address private", ModeAuto, private, "10.244.2.0/24>10.1.0.2:6 10.244.3.0/24>192.0.2.3:6 10.244.4.0/24>10.1.0.4:6 10.244.5.0/24>10.1.0.5:4 " +
			"2001:db8:2::/64>10.1.0.2:6 2001:db8:3::/64>192.0.2.3:6 2001:db8:4::/64>10.1.0.4:6 2001:db8:6::/64>[2001:db9::6]:6", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := new(logBuffer)
			r := newRoster(Node{
				Subnet: netip.MustParsePrefix("10.244.1.0/24"), PublicIP: netip.MustParseAddr("10.1.0.1"), Network: netip.MustParsePrefix("10.244.0.0/16"),
				Subnet6: netip.MustParsePrefix("2001:db8:1::/64"), PublicIPv6: netip.MustParseAddr(test.six), Network6: netip.MustParsePrefix("2001:db8::/32"),
				Backend: BackendWireGuard, Key: publicKey(t, keyOne), Mode: test.mode,
			}, log.logger())
			r.replace(entries)
			table, _ := r.update()
			var got []string
			for _, p := range table.Peers() {
				got = append(got, fmt.Sprintf("%s>%s", p.Subnet, netip.AddrPortFrom(p.PublicIP, p.Port)))
				if p.Key != publicKey(t, keyTwo) {
					t.Errorf("%+v", p)
				}
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("peers:\n got %s\nwant %s", text, test.want)
			}
			if r.skipped[SkipEndpoint] != test.endpoint || r.skipped[SkipCircular] != 1 || log.count("has no address of the family that Backend.Mode goes over") != test.endpoint {
				t.Errorf("skipped %v\n%s", r.skipped, log.String())
			}
			if test.endpoint != 0 && ExplainSkip(SkipEndpoint) == "" {
				t.Error("not explained")
			}
		})
	}
}
