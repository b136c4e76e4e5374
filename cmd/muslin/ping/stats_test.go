package ping

import (
	"net/netip"
	"strings"
	"testing"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/overlay"
)

func TestSummarize(t *testing.T) {
	all := []Echo{{US: 100}, {US: 300}, {Why: "no answer within 1s"}, {US: 200}, {Why: stopped}}
	if got, want := summarize(all, 2), (Stats{Sent: 4, Received: 3, Duplicates: 2, Loss: 0.25, Min: 100, Avg: 200, Max: 300, P50: 200, P99: 300, Jitter: 150}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summarize([]Echo{{Why: stopped}}, 0); got != (Stats{}) {
		t.Errorf("nothing sent: %+v", got)
	}
	var many []Echo
	for i := range 200 {
		many = append(many, Echo{US: float64(i + 1)})
	}
	if got := summarize(many, 0); got.P50 != 100 || got.P99 != 198 || got.Jitter != 1 {
		t.Errorf("%+v", got)
	}
}

// An error quotes the request that it is about; what quotes another one is not ours.
func TestParseErrors(t *testing.T) {
	four := &socket{id: 0x1234}
	// RFC 792: type 3, code 4, checksum, unused, next-hop MTU 1400; then the IPv4 header and 8 bytes.
	message := []byte{3, 4, 0, 0, 0, 0, 0x05, 0x78,
		0x45, 0, 5, 0xaa, 0, 0, 0x40, 0, 63, 1, 0, 0, 10, 244, 1, 0, 10, 244, 2, 7,
		8, 0, 0, 0, 0x12, 0x34, 0, 9}
	var r reply
	if !four.parse(message, &r) || r.seq != 9 || r.mtu != 1400 || r.why != "too long" || r.to != netip.MustParseAddr("10.244.2.7") {
		t.Errorf("%+v", r)
	}
	for cut := range message {
		var r reply
		if four.parse(message[:cut], &r) {
			t.Errorf("%d bytes of it are taken", cut)
		}
	}
	for at, b := range map[int]byte{17: 17, 28: 0, 33: 0x35} { // UDP, an echo reply, another id
		other := append([]byte{}, message...)
		other[at] = b
		if four.parse(other, new(reply)) {
			t.Errorf("byte %d as %d is taken for ours", at, b)
		}
	}
	six := &socket{six: true, id: 0x1234}
	big := append([]byte{2, 0, 0, 0, 0, 0, 0x05, 0x00}, make([]byte, 48)...)
	big[8], big[14], big[48], big[52], big[53], big[55] = 0x60, 58, 128, 0x12, 0x34, 3
	if r = (reply{}); !six.parse(big, &r) || r.mtu != 1280 || r.seq != 3 || r.why != "too long" {
		t.Errorf("%+v", r)
	}
}

func TestMeshText(t *testing.T) {
	yes, no, rtt, loss := true, false, 1500.0, 0.25
	for want, l := range map[string]Link{
		"DOWN":           {Up: &no, Loss: &loss},
		"1.50":           {Up: &yes, RTT: &rtt},
		"1.50 LOSS 25 %": {Up: &yes, RTT: &rtt, Loss: &loss},
		"up":             {Up: &yes},
		"?":              {},
	} {
		if got := l.cell(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A node is pinged at its base, or with host-gw behind it.
func TestFind(t *testing.T) {
	n := &overlay.Network{Status: &control.Status{
		Node:  control.NodeStatus{Network: "10.244.0.0/16", Subnet: "10.244.1.0/24", PublicIP: "192.0.2.1", TUN: "muslin0"},
		Peers: []control.PeerStatus{{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2"}},
	}}
	for word, want := range map[string]string{"10.244.2.0/24": "10.244.2.0", "192.0.2.2": "10.244.2.0", "10.244.2.9": "10.244.2.9", "10.244.1.3": "10.244.1.3", "192.0.2.1": "10.244.1.0", "10.244.1.0/24": "10.244.1.0", "10.244.7.7": "10.244.7.7"} {
		p, err := n.Find(word)
		if err != nil || p.Addr.String() != want || p.Own != strings.HasPrefix(want, "10.244.1.") || (p.Peer == nil) != (p.Own || word == "10.244.7.7") {
			t.Errorf("%s: %+v, %v", word, p, err)
		}
	}
	n.Node.TUN = ""
	if p, err := n.Find("192.0.2.2"); err != nil || p.Addr.String() != "10.244.2.1" {
		t.Errorf("with host-gw: %+v, %v", p, err)
	}
}
