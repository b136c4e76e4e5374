package filter

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/net/bpf"
)

// oracle is tcpdump's compiler: for packets that begin with their IP header.
type oracle struct{ file string }

func newOracle(t testing.TB) oracle {
	t.Helper()
	o := oracle{filepath.Join(t.TempDir(), "raw.pcap")}
	f, err := os.Create(o.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := pcapgo.NewWriter(f).WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	return o
}

// compile is tcpdump's program. A program that returns a constant is `ret #n`.
func (o oracle) compile(t testing.TB, expression string) (*bpf.VM, error) {
	t.Helper()
	out, err := exec.Command("tcpdump", "-r", o.file, "-ddd", "--", expression).CombinedOutput()
	if bytes.Contains(out, []byte("expression rejects all packets")) {
		out = []byte("1\n6 0 0 0\n")
	} else if err != nil {
		return nil, fmt.Errorf("tcpdump: %w: %s", err, out)
	}
	var program []bpf.Instruction
	for line := range strings.Lines(string(out)) {
		var op uint16
		var jt, jf uint8
		var k uint32
		if n, _ := fmt.Sscanf(line, "%d %d %d %d", &op, &jt, &jf, &k); n == 4 {
			program = append(program, bpf.RawInstruction{Op: op, Jt: jt, Jf: jf, K: k}.Disassemble())
		}
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatalf("%s: %v\n%s", expression, err, out)
	}
	return vm, nil
}

// whole is how many of the corpus are not cut short.
const whole = 150

// corpus is packets of many kinds, those behind whole broken or cut short.
func corpus(t testing.TB) (all [][]byte) {
	t.Helper()
	add := func(ls ...gopacket.SerializableLayer) {
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.Clone(b.Bytes()))
	}
	addrs := []string{"10.1.0.5", "10.2.0.5", "10.2.3.4", "192.168.1.1", "224.0.0.1"}
	addrs6 := []string{"fd00:1::5", "fd00:2::5", "fd00:2:3::4", "ff02::1"}
	ports := []uint16{22, 53, 80, 443, 8472, 40000}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(n int) int { return rnd.IntN(n) }
	for range whole {
		ip := &layers.IPv4{Version: 4, TTL: uint8(pick(255)), TOS: uint8(pick(4)), Protocol: layers.IPProtocolTCP, Id: uint16(pick(65536)),
			SrcIP: net.ParseIP(addrs[pick(len(addrs))]), DstIP: net.ParseIP(addrs[pick(len(addrs))])}
		if pick(4) == 0 {
			ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
		}
		if pick(5) == 0 {
			ip.FragOffset = uint16(pick(3))
		}
		ip6 := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP(addrs6[pick(len(addrs6))]), DstIP: net.ParseIP(addrs6[pick(len(addrs6))])}
		var network gopacket.SerializableLayer = ip
		six := pick(3) == 0
		if six {
			network = ip6
		}
		payload := gopacket.Payload(bytes.Repeat([]byte{byte(pick(256))}, pick(200)))
		src, dst := ports[pick(len(ports))], ports[pick(len(ports))]
		protocol := func(p layers.IPProtocol) { ip.Protocol, ip6.NextHeader = p, p }
		switch pick(7) {
		case 0, 1:
			protocol(layers.IPProtocolTCP)
			tcp := &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), SYN: pick(2) == 0, ACK: pick(2) == 0, FIN: pick(3) == 0, RST: pick(5) == 0, Window: uint16(pick(65536))}
			add(network, withNetwork(tcp, network), payload)
		case 2, 3:
			protocol(layers.IPProtocolUDP)
			udp := &layers.UDP{SrcPort: layers.UDPPort(src), DstPort: layers.UDPPort(dst)}
			add(network, withNetwork(udp, network), payload)
		case 4:
			if six {
				protocol(layers.IPProtocolICMPv6)
				icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(uint8(126+pick(5)), uint8(pick(2)))}
				_ = icmp.SetNetworkLayerForChecksum(ip6)
				add(network, icmp, payload)
			} else {
				protocol(layers.IPProtocolICMPv4)
				add(network, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode([]uint8{0, 3, 8, 11}[pick(4)], uint8(pick(4)))}, payload)
			}
		case 5:
			protocol(layers.IPProtocol(pick(140)))
			if ip6.NextHeader == 0 { // gopacket would write a header for that
				ip6.NextHeader = 1
			}
			add(network, payload)
		case 6:
			if six { // a fragment header, and perhaps ports behind
				protocol(44)
				add(network, gopacket.Payload([]byte{6, 0, 0, 0, 0, 0, 0, 1, 0, 22, 0, 80, 1, 2, 3, 4}))
			} else {
				protocol(layers.IPProtocolSCTP)
				add(network, gopacket.Payload([]byte{0, 22, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}))
			}
		}
	}
	for _, p := range all[:60] {
		all = append(all, p[:pick(len(p))+1])
	}
	return append(all, []byte{0}, []byte{0x45}, []byte{0x60, 0, 0}, []byte{0x50, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23})
}

func withNetwork[L interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}](l L, network gopacket.SerializableLayer) L {
	_ = l.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer))
	return l
}

// expressions are what people write, and what stands in pcap-filter(7).
var expressions = []string{
	"ip", "ip6", "tcp", "udp", "icmp", "icmp6", "igmp", "esp", "ah", "pim", "vrrp", "sctp", "arp", "rarp",
	"host 10.1.0.5", "src host 10.1.0.5", "dst host 10.2.0.5", "src 10.1.0.5", "src or dst host 10.1.0.5", "src and dst host 10.1.0.5",
	"src && dst host 10.1.0.5", "dst or src 10.2.3.4", "ip host 10.1.0.5", "ip src 10.1.0.5", "host fd00:1::5", "ip6 host fd00:2::5", "src host fd00:2::5",
	"net 10.2", "net 10.2.0.0/16", "src net 10.2.0.0/16", "dst net 10", "net 10.2.3", "net 10.2.0.0 mask 255.255.0.0", "net 10.1.0.5", "net 0.0.0.0/0",
	"net fd00:2::/32", "ip6 net fd00:2::/32", "src net fd00:2::/31", "net fd00:2::5", "ip6 net fd00:2:3::/48", "net ::/0",
	"port 80", "tcp port 80", "udp port 53", "sctp port 22", "src port 22", "dst port 80", "tcp src port 80", "tcp dst port 443", "src and dst port 80", "src or dst port 80",
	"portrange 22-80", "tcp portrange 22-80", "src portrange 80-22", "udp dst portrange 50-8472", "portrange 80", "port http", "tcp port https", "udp port domain", "port ssh",
	"proto 17", "ip proto 47", "ip6 proto 58", "ip proto \\tcp", "proto \\udp", "ip6 proto \\ipv6-icmp", "ip proto \\icmp",
	"ip multicast", "ip6 multicast",
	"less 100", "greater 100", "len > 100", "len <= 60", "len = 60", "len != 60", "100 < len",
	"not port 22", "! tcp", "not (tcp or udp)", "tcp and not port 22", "not host 10.1.0.5 and not host 10.2.0.5", "not not tcp",
	"tcp or udp and port 53", "tcp and port 80 or udp", "(tcp or udp) and port 53", "tcp port 80 or udp port 53", "host 10.1.0.5 and (port 80 or 443)",
	"port 80 or 443", "port (80 or 443)", "host (10.1.0.5 or 10.2.0.5)", "src host 10.1.0.5 or 10.2.0.5", "not host 10.1.0.5 or 10.2.0.5", "tcp port (80 or 443 and not 22)",
	"dst port 80 or 443 or 22", "host 10.1.0.5 or fd00:1::5", "net 10.2.0.0/16 or 192.168.1.0/24",
	"tcp[13] & 2 != 0", "tcp[tcpflags] & tcp-syn != 0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] = tcp-syn", "tcp[tcpflags] == tcp-syn|tcp-ack",
	"tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)", "not tcp[13] & 2 != 0", "tcp[0:2] = 80", "udp[4:2] > 20", "udp[8:4] != 0", "ip[8] < 100",
	"ip[0] & 0xf != 5", "ip[6:2] & 0x1fff != 0", "ip[2:2] > 100", "ip6[6] = 58", "ip6[40] = 128", "icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply",
	"icmp[0] = 8", "icmp[icmpcode] = 1", "icmp6[icmp6type] = icmp6-echo", "icmp6[0] = 128",
	"tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", // from the manual
	"(tcp[12] & 0xf0) >> 2 > 20", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", "ip[ip[0] & 0xf] = 0", "ip[20 + 2:2] = 80", "ip[8] * 2 > 100", "ip[8] / 3 = 5", "ip[8] % 7 = 2",
	"ip[8] ^ 0xff = 3", "1 = 1", "1 = 2", "ip[8] > ip[1]", "-1 < 2", "ip[8] > ip6[7]", "ip[8] / ip[1] = 3", "4 + 2 * 3 = 10", "8 - 3 - 2 = 3", "1 << 2 + 1 = 8", "6 & 3 | 8 = 10", "5 | 3 & 2 = 7", "6 ^ 3 & 1 = 7",
	"len - 20 > ip[0]", "ip[1000] = 3 or tcp", "not ip[1000] = 3", "tcp[13] & 7 != 0 && dst net 10.2.0.0/16", "ip and tcp || ip6 and udp", "sctp[0:2] = 22",
	"0x10 = 16", "010 = 8", "tcp[0xd] & 02 = 2", "ip host 10.1.0.5 and tcp port 80", "src net 10.2 and dst net 10.1 or src net 10.1 and dst net 10.2",
}

// Each expression means what it means to tcpdump.
func TestAsTcpdump(t *testing.T) {
	o, packets := newOracle(t), corpus(t)
	matched := 0
	for _, e := range expressions {
		matched += compareWith(t, o, e, packets)
	}
	if matched < 5*len(expressions) {
		t.Errorf("%d matches over %d expressions: the packets are too few to tell anything", matched, len(expressions))
	}
}

// compareWith fails the test unless both are of one mind about every packet. It returns how many matched.
func compareWith(t *testing.T, o oracle, expression string, packets [][]byte) (matched int) {
	t.Helper()
	vm, err := o.compile(t, expression)
	if err != nil {
		t.Errorf("%s: %v", expression, err)
		return 0
	}
	f, err := Compile(expression)
	if err != nil {
		t.Error(err)
		return 0
	}
	for _, p := range packets {
		n, err := vm.Run(p)
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
		want := n > 0
		if want {
			matched++
		}
		if got := f.Match(&Packet{Bytes: p, Length: len(p)}); got != want {
			t.Errorf("%s: %v, to tcpdump %v: %s", expression, got, want, hex.EncodeToString(p))
			return matched
		}
		// What it says it reaches is enough.
		if got := f.Match(&Packet{Bytes: p[:min(len(p), f.Reach())], Length: len(p)}); got != want {
			t.Errorf("%s: %v of the first %d bytes, to tcpdump %v: %s", expression, got, f.Reach(), want, hex.EncodeToString(p))
			return matched
		}
	}
	return matched
}

// Expressions at random mean the same, too.
func TestAsTcpdumpRandom(t *testing.T) {
	// What is not there makes a packet not match, but where libpcap's optimizer sees that it need not look: so nothing is missing here.
	o, packets := newOracle(t), corpus(t)[:whole]
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 250 {
		e := randomExpression(rnd, 3)
		compareWith(t, o, e, packets)
		if t.Failed() {
			return
		}
	}
}

func randomExpression(r *rand.Rand, depth int) string {
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	if depth > 0 {
		switch r.IntN(5) {
		case 0, 1:
			return randomExpression(r, depth-1) + pick(" and ", " or ", " && ", " || ") + randomExpression(r, depth-1)
		case 2:
			return "not " + randomExpression(r, depth-1)
		case 3:
			return "(" + randomExpression(r, depth-1) + ")"
		}
	}
	if r.IntN(3) == 0 {
		return randomNumber(r, 2) + " " + pick("=", "!=", "<", ">", "<=", ">=") + " " + randomNumber(r, 2)
	}
	dir := pick("", "src ", "dst ", "src or dst ", "src and dst ")
	return pick(
		pick("tcp", "udp", "icmp", "icmp6", "ip", "ip6", "sctp"),
		pick("", "tcp ", "udp ")+dir+"port "+pick("22", "53", "80", "443", "domain"),
		dir+"host "+pick("10.1.0.5", "10.2.0.5", "fd00:1::5", "224.0.0.1"),
		dir+"net "+pick("10", "10.2", "10.2.0.0/15", "192.168.1.0/24", "fd00:2::/32", "fd00::/13"),
		pick("tcp ", "", "udp ")+dir+"portrange "+pick("20-60", "80-443"),
		"len "+pick("<", ">")+" "+strconv.Itoa(r.IntN(200)), pick("less ", "greater ")+strconv.Itoa(r.IntN(200)),
		pick("ip ", "ip6 ", "")+"proto "+pick("6", "17", "58", "1", "44"),
	)
}

func randomNumber(r *rand.Rand, depth int) string {
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	if depth > 0 && r.IntN(2) == 0 {
		// libpcap forgets what the right operand needs (2 & tcp[13] looks at UDP, too): there are only numbers there.
		a := randomNumber(r, depth-1)
		if r.IntN(4) == 0 {
			return "(" + a + pick(" / ", " % ", " << ", " >> ") + strconv.Itoa(1+r.IntN(7)) + ")"
		}
		return "(" + a + pick(" + ", " - ", " & ", " | ", " * ", " ^ ") + strconv.Itoa(r.IntN(300)) + ")"
	}
	return pick("len", strconv.Itoa(r.IntN(70)), fmt.Sprintf("ip[%d]", r.IntN(20)), fmt.Sprintf("tcp[%d:%d]", r.IntN(16), 1<<r.IntN(3)),
		fmt.Sprintf("ip6[%d:2]", r.IntN(38)), fmt.Sprintf("udp[%d]", r.IntN(8)), "tcp[tcpflags]", "icmp[icmptype]", "ip[ip[0] & 0xf]")
}

// What it does not know it refuses, and says what is the matter.
func TestRefused(t *testing.T) {
	for expression, want := range map[string]string{
		"host":                 "want an address",
		"host example.com":     "not looked up",
		"foo":                  "not a word of the filter language",
		"tcp and":              "at its end",
		"tcp udp":              "want \"and\"",
		"(tcp":                 "want \")\"",
		"tcp)":                 "want \"and\"",
		"port 70000":           "65535 at most",
		"port nosuchport":      "not in /etc/services",
		"icmp port 5":          "ports are of tcp, udp or sctp",
		"tcp host 10.1.0.5":    "say tcp and host",
		"ip host fd00::1":      "not an address of IPv4",
		"ip6 host 10.1.0.5":    "not an address of IPv6",
		"net 10.2.3.4/16":      "say 10.2.0.0",
		"net fd00::1/64":       "say fd00::/64",
		"host 10.2.0.0/16":     "say net",
		"net 10.0.0.0/33":      "32 at most",
		"host 10.1":            "want an address",
		"host 10.1.0.256":      "want an address",
		"ether host 1:2:3:4":   "no Ethernet header",
		"vlan 5":               "no VLAN tag",
		"ether[0] & 1 = 0":     "no Ethernet header",
		"broadcast":            "give the address",
		"multicast":            "say ip multicast",
		"tcp[13":               "want \"]\"",
		"tcp[13:3] = 1":        "1, 2 or 4",
		"tcp[13] &":            "want a number",
		"len >":                "want a number",
		"foo[1] = 2":           "want ip, ip6",
		"ip proto 256":         "a number up to 255",
		"ip proto foo":         "want a protocol",
		"vxlan 16777216":       "24 bits",
		"vxlan and vxlan":      "not looked into",
		"tcp @ udp":            "no sign of the language",
		"tcp and \\":           "no sign of the language",
		"less":                 "want a length",
		"80":                   "want a comparison",
		"ip6 protochain 6":     "name the protocol itself",
		"src src host 1.2.3.4": "not a word",
		strings.Repeat("(", 200) + "tcp" + strings.Repeat(")", 200): "too deeply",
		strings.Repeat("not ", 300) + "tcp":                         "too deeply",
		strings.Repeat("tcp or ", 1000) + "udp":                     "4096 at most",
	} {
		_, err := Compile(expression)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want it to say %q", expression, err, want)
		}
	}
}

// vxlan has the rest be about the inner packet, over IPv4 and IPv6; direction is known.
func TestInside(t *testing.T) {
	var inner []byte
	for _, p := range corpus(t) {
		if f, _ := Compile("tcp and not port 8472"); version(p) == 4 && f.Match(&Packet{Bytes: p}) {
			inner = p
			break
		}
	}
	ip := func(b []byte) []byte {
		h := make([]byte, 20, 100)
		h[0], h[9] = 0x45, 17
		copy(h[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		return append(h, b...)
	}
	ip6 := func(b []byte) []byte {
		h := make([]byte, 40, 100)
		h[0], h[6] = 0x60, 17
		return append(h, b...)
	}
	vxlan := append([]byte{0x9c, 0x40, 0x21, 0x18, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 42, 0}, make([]byte, 14)...)
	binary.BigEndian.PutUint16(vxlan[16+12:], 0x800)
	for _, p := range [][]byte{ip(append(vxlan, inner...)), ip6(append(vxlan, inner...))} {
		for expression, want := range map[string]bool{
			"vxlan": true, "vxlan 42": true, "vxlan 43": false, "udp port 8472": true, "outbound": false, "inbound": true, "inbound and vxlan": true,
			"vxlan and udp port 8472": false, "not vxlan": false, "vxlan 42 and ip[0] & 0xf0 = 0x40": true, "vxlan and (tcp or udp or icmp or ip or ip6)": true,
			"udp port 8472 and vxlan 42 and not port 8472": true,
		} {
			f, err := Compile(expression)
			if err != nil {
				t.Fatal(err)
			}
			if got := f.Match(&Packet{Bytes: p, Length: len(p), Inbound: true}); got != want {
				t.Errorf("%s: %v, want %v", expression, got, want)
			}
		}
		f, _ := Compile("vxlan and not tcp")
		if f.Match(&Packet{Bytes: p[:len(p)-len(inner)-5], Length: 2000}) {
			t.Error("a datagram that is cut short within Ethernet's header matches")
		}
	}
}

// An address by itself is a host or a network, which tcpdump wants a word for.
func TestAlone(t *testing.T) {
	for expression, long := range map[string]string{
		"10.1.0.5": "host 10.1.0.5", "fd00:2:3::4": "host fd00:2:3::4", "10.2.0.0/16": "net 10.2.0.0/16", "not 10.1.0.5 and tcp": "not host 10.1.0.5 and tcp",
	} {
		f, err := Compile(expression)
		if err != nil {
			t.Error(err)
			continue
		}
		g, _ := Compile(long)
		for _, p := range corpus(t) {
			if p := (&Packet{Bytes: p, Length: len(p)}); f.Match(p) != g.Match(p) {
				t.Errorf("%s is not %s", expression, long)
				break
			}
		}
	}
}

func TestEmpty(t *testing.T) {
	f, err := Compile("  ")
	if err != nil || !f.Match(&Packet{Bytes: []byte{0x45}, Length: 1}) || !f.Match(&Packet{}) {
		t.Errorf("an empty expression does not match everything (%v)", err)
	}
}

// No expression and no packet panics, and what reaches far says so.
func FuzzFilter(f *testing.F) {
	for _, e := range expressions {
		f.Add(e, []byte{0x45, 0, 0, 20})
	}
	for i, p := range corpus(f) {
		f.Add(expressions[i%len(expressions)], p)
	}
	f.Fuzz(func(t *testing.T, expression string, p []byte) {
		c, err := Compile(expression)
		if err != nil {
			return
		}
		whole := c.Match(&Packet{Bytes: p, Length: len(p)})
		if short := c.Match(&Packet{Bytes: p[:min(len(p), c.Reach())], Length: len(p)}); short != whole {
			t.Errorf("%q: %v, of the first %d bytes %v", expression, whole, c.Reach(), short)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	packets := corpus(b)
	for _, e := range []string{"tcp", "host 10.1.0.5 and tcp port 80", "tcp[tcpflags] & tcp-syn != 0"} {
		b.Run(e, func(b *testing.B) {
			f, err := Compile(e)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			i, p := 0, Packet{}
			for b.Loop() {
				p.Bytes = packets[i%whole]
				p.Length = len(p.Bytes)
				i++
				f.Match(&p)
			}
		})
	}
}
