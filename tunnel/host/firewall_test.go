//go:build linux

package host

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"reflect"
	"strings"
	"testing"
)

// flannel's rules as iptables-save shows them.
const (
	wantFilter = `-A FORWARD -j HERS
-A FORWARD -m comment --comment "muslin forward" -j MUSLIN-FWD
-A MUSLIN-FWD -s 10.244.0.0/16 -j ACCEPT
-A MUSLIN-FWD -d 10.244.0.0/16 -j ACCEPT`
	wantNAT = `-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
-A POSTROUTING -m comment --comment "muslin masquerade" -j MUSLIN-POSTRTG
-A MUSLIN-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A MUSLIN-POSTRTG -s 10.244.5.0/24 -d 10.244.0.0/16 -j RETURN
-A MUSLIN-POSTRTG -s 10.244.0.0/16 -d 10.244.5.0/24 -j RETURN
-A MUSLIN-POSTRTG ! -s 10.244.0.0/16 -d 10.244.5.0/24 -j RETURN
-A MUSLIN-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A MUSLIN-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully`
)

func TestIPTablesRules(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	s, err := Setup(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	check := func(table, want string) {
		t.Helper()
		got := strings.TrimSpace(run(t, "iptables-save -t "+table+" | grep -- '^-A'"))
		if got != want {
			t.Errorf("table %s:\n%s\nwant\n%s", table, got, want)
		}
	}
	check("filter", wantFilter)
	check("nat", wantNAT)
	if nft := run(t, "nft list tables"); strings.Contains(nft, "table ip muslin") {
		t.Errorf("both tools were used:\n%s", nft)
	}

	for _, damage := range []string{
		"iptables -F MUSLIN-FWD",
		"iptables -D MUSLIN-FWD 1",
		"iptables -D FORWARD 2",
		"iptables -I MUSLIN-FWD -j DROP",
		"iptables -t nat -F",
		"iptables -F FORWARD && iptables -A FORWARD -j HERS && iptables -F MUSLIN-FWD && iptables -X MUSLIN-FWD",
	} {
		if ok, err := s.firewalls[0].intact(); err != nil || !ok {
			t.Fatalf("before %q: intact %v, %v", damage, ok, err)
		}
		run(t, damage)
		if ok, err := s.firewalls[0].intact(); err != nil || ok {
			t.Errorf("after %q: intact %v, %v", damage, ok, err)
		}
		if did, err := s.convergeFirewall(); err != nil || len(did) != 1 {
			t.Errorf("after %q: did %v, %v", damage, did, err)
		}
		check("filter", wantFilter)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	if left := run(t, "iptables-save"); strings.Contains(left, "MUSLIN") {
		t.Errorf("left:\n%s", left)
	}
}

// The same in nft's words, as `nft list table` of 1.0 shows them, counters taken off.
const wantTable = `table ip muslin {
chain MUSLIN-FWD {
type filter hook forward priority filter; policy accept;
ip saddr 10.244.0.0/16 accept
ip daddr 10.244.0.0/16 accept
}
chain MUSLIN-POSTRTG {
type nat hook postrouting priority srcnat; policy accept;
meta mark & 0x00004000 == 0x00004000 return
ip saddr 10.244.5.0/24 ip daddr 10.244.0.0/16 return
ip saddr 10.244.0.0/16 ip daddr 10.244.5.0/24 return
ip saddr != 10.244.0.0/16 ip daddr 10.244.5.0/24 return
ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
}
}`

func TestNFTablesRules(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	c.UseNFTables = true
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		var got []string
		for line := range strings.Lines(run(t, "nft list table ip muslin | sed 's/counter packets [0-9]* bytes [0-9]* //'")) {
			if line = strings.TrimSpace(line); line != "" {
				got = append(got, line)
			}
		}
		if text := strings.Join(got, "\n"); text != wantTable {
			t.Errorf("table:\n%s\nwant\n%s", text, wantTable)
		}
	}
	check()
	var listing struct {
		NFTables []map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(run(t, "nft -j list table ip muslin")), &listing); err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for _, object := range listing.NFTables {
		for kind := range object {
			count[kind]++
		}
	}
	if want := map[string]int{"metainfo": 1, "table": 1, "chain": 2, "rule": 8}; !reflect.DeepEqual(count, want) {
		t.Errorf("objects %v, want %v", count, want)
	}
	if saved := run(t, "iptables-save"); strings.Contains(saved, "MUSLIN") {
		t.Errorf("both tools were used:\n%s", saved)
	}

	for _, damage := range []string{
		"nft flush table ip muslin",
		"nft flush chain ip muslin MUSLIN-FWD",
		"nft delete table ip muslin",
		"nft add rule ip muslin MUSLIN-FWD drop",
		"nft flush chain ip muslin MUSLIN-FWD && nft delete chain ip muslin MUSLIN-FWD",
	} {
		if ok, err := s.firewalls[0].intact(); err != nil || !ok {
			t.Fatalf("before %q: intact %v, %v", damage, ok, err)
		}
		run(t, damage)
		if ok, err := s.firewalls[0].intact(); err != nil || ok {
			t.Errorf("after %q: intact %v, %v", damage, ok, err)
		}
		if did, err := s.convergeFirewall(); err != nil || len(did) != 1 {
			t.Errorf("after %q: did %v, %v", damage, did, err)
		}
		check()
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	if left := run(t, "nft list tables"); strings.Contains(left, "muslin") {
		t.Errorf("left:\n%s", left)
	}
}

func TestRulesFor(t *testing.T) {
	c := config("")
	for _, w := range []struct {
		forward, masq        bool
		wantFwd, wantPostrtg int
	}{{true, true, 2, 6}, {true, false, 2, 0}, {false, true, 0, 6}, {false, false, 0, 0}} {
		c.ForwardRules, c.IPMasq = w.forward, w.masq
		if all := rulesFor(c); len(all) == 0 != (!w.forward && !w.masq) || len(all) > 1 {
			t.Errorf("%+v: rules of %d families", w, len(all))
		}
		r := rulesOf(c, c.halves()[0])
		if len(r.forward) != w.wantFwd || len(r.postrouting) != w.wantPostrtg {
			t.Errorf("%+v: %d and %d rules", w, len(r.forward), len(r.postrouting))
		}
	}
}

// udpPacket is an IPv4 packet with an empty UDP datagram of port 5000 to 5000 without a UDP checksum.
func udpPacket(src, dst string) []byte {
	p := make([]byte, 28)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], 28)
	copy(p[12:], net.ParseIP(src).To4())
	copy(p[16:], net.ParseIP(dst).To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], 5000)
	binary.BigEndian.PutUint16(p[22:], 5000)
	binary.BigEndian.PutUint16(p[24:], 8)
	return p
}
