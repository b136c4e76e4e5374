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
	c, err := ParseConfig([]byte(wireguardConfig(`,"Mode":"ipv6"`)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Supported(); err == nil || !strings.Contains(err.Error(), `Backend.Mode "ipv6"`) {
		t.Errorf("Mode ipv6: %v", err)
	}
	if c, err = ParseConfig([]byte(wireguardConfig(`,"Port":51820`))); err != nil || !strings.Contains(strings.Join(c.Warnings, ""), "Backend.Port is not known") {
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
