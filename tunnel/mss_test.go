package tunnel

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// syn is a SYN with these options.
func syn(t *testing.T, from, to string, options ...layers.TCPOption) []byte {
	t.Helper()
	return tcpPacket(t, from, to, 1, nil, func(_ *layers.IPv4, l *layers.TCP) { l.SYN, l.ACK, l.Options = true, false, options })
}

func mss(value uint16) layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, value)}
}

var nop = layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1}

// mssOf is what a packet states, 0 if it does not. gopacket has to find its checksum right.
func mssOf(t *testing.T, p []byte) uint16 {
	t.Helper()
	var decoded gopacket.Packet
	if isSix(p) {
		_, decoded = checkSound6(t, p)
	} else {
		_, decoded = checkSound(t, p)
	}
	for _, o := range decoded.Layer(layers.LayerTypeTCP).(*layers.TCP).Options {
		if o.OptionType == layers.TCPOptionKindMSS {
			return binary.BigEndian.Uint16(o.OptionData)
		}
	}
	return 0
}

func TestClampMSS(t *testing.T) {
	sack := layers.TCPOption{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2}
	for _, family := range families {
		headers := uint16(40)
		if family[0].six() {
			headers = 60
		}
		for _, c := range []struct {
			name    string
			options []layers.TCPOption
			want    uint16 // less headers; 0: none
		}{
			{"more", []layers.TCPOption{mss(8960), sack}, testPath},
			{"one more", []layers.TCPOption{mss(testPath - headers + 1)}, testPath},
			{"as much", []layers.TCPOption{mss(testPath - headers)}, testPath},
			{"less", []layers.TCPOption{mss(1000 - headers)}, 1000},
			{"over two words", []layers.TCPOption{nop, mss(0xfffe), nop}, testPath},
			{"behind others", []layers.TCPOption{sack, nop, nop, mss(1460)}, testPath},
			{"none", []layers.TCPOption{sack}, 0},
		} {
			want := uint16(0)
			if c.want != 0 {
				want = c.want - headers
			}
			x := newBenchOf(t, family[0], "vxlan", 1, func(c *Config) { c.ClampMSS = true })
			x.b.Counters.PathMTU.Store(testPath)
			ours, theirs := x.addr("10.1.0.5"), x.addr("10.2.0.5")
			out := syn(t, ours, theirs, c.options...)
			for _, p := range []inner{{p: bytes.Clone(out)}, unfinished(out)} {
				sent := x.send(t, p)
				if len(sent) != 1 || mssOf(t, x.unframed(sent[0])) != want {
					t.Errorf("%s, outbound: %d datagrams, MSS %d, want %d", c.name, len(sent), mssOf(t, x.unframed(sent[0])), want)
				}
			}
			in := syn(t, theirs, ours, c.options...)
			got := x.receive(t, x.from(t, family[1], in))
			if len(got) != 1 || mssOf(t, got[0]) != want {
				t.Errorf("%s, inbound: %d packets, MSS %d, want %d", c.name, len(got), mssOf(t, got[0]), want)
			}
			// A checksum that is not finished stays so.
			part := unfinished(in).p
			got = x.receive(t, x.from(t, family[1], part))
			if len(got) != 1 {
				t.Fatalf("%s: %d packets", c.name, len(got))
			}
			sum := headerLen(got[0]) - 20 - len(optionBytes(got[0])) + tcpCsum
			if got, want := binary.BigEndian.Uint16(got[0][sum:]), binary.BigEndian.Uint16(part[sum:]); got != want {
				t.Errorf("%s: checksum field %#x of a packet whose NIC was to fill it in, was %#x", c.name, got, want)
			}
		}
	}
}

// optionBytes are the TCP options of p, of which headerLen counts its IP and TCP headers.
func optionBytes(p []byte) []byte {
	tcp := 20
	if isSix(p) {
		tcp = 40
	}
	return p[tcp+20 : tcp+int(p[tcp+12]>>4)*4]
}

// What is no SYN, or not asked for, or no option at all, stays as it is.
func TestClampMSSLeavesAlone(t *testing.T) {
	for _, c := range []struct {
		name  string
		clamp bool
		p     []byte
	}{
		{"off", false, syn(t, "10.1.0.5", "10.2.0.5", mss(8960))},
		{"no SYN", true, tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, nil, func(_ *layers.IPv4, l *layers.TCP) { l.Options = []layers.TCPOption{mss(8960)} })},
		{"UDP", true, udpPacket(t, "10.1.0.5", "10.2.0.5", string(syn(t, "10.1.0.5", "10.2.0.5", mss(8960))[20:]))},
		{"a later fragment", true, tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, nil, func(ip *layers.IPv4, l *layers.TCP) {
			l.SYN, ip.FragOffset, l.Options = true, 1, []layers.TCPOption{mss(8960)}
		})},
	} {
		x := newBench(t, "vxlan", func(cfg *Config) { cfg.ClampMSS = c.clamp })
		sent := x.sendPlain(t, c.p)
		if len(sent) != 1 || !bytes.Equal(x.unframed(sent[0]), c.p) {
			t.Errorf("%s: % x became % x", c.name, c.p, x.unframedAll(sent))
		}
	}
}

// No TCP header has lowerMSS reach beyond it.
func FuzzLowerMSS(f *testing.F) {
	f.Add([]byte{19: 0}, uint16(1000))
	whole := append(make([]byte, 20), 2, 4, 0xff, 0xff)
	whole[12], whole[13] = 6<<4, tcpSYN
	f.Add(whole, uint16(1310))
	for _, tail := range [][]byte{{2}, {2, 4}, {2, 4, 5}, {1, 1, 1, 2}, {3, 0, 2, 4}, {3, 1}, {5, 200}} {
		p := append(make([]byte, 20), tail...)
		p[12], p[13] = 15<<4, tcpSYN
		f.Add(p, uint16(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, most uint16) {
		before := bytes.Clone(p)
		lowerMSS(p[:len(p):len(p)], most, true)
		if len(p) < tcpLen || bytes.Equal(p, before) {
			return
		}
		// The sum over all is as it was, where a pseudo-header would add the same to both.
		was, is := slowSum(pad(before), 0), slowSum(pad(p), 0)
		if was%0xffff != is%0xffff {
			t.Errorf("sum %#x became %#x: % x, % x", was, is, before, p)
		}
	})
}

func pad(p []byte) []byte { return append(bytes.Clone(p), make([]byte, len(p)%2)...) }
