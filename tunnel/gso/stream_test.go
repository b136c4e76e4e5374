package gso

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket/layers"
)

// dice is where a stream takes its turns from: a number below n.
type dice func(n int) int

// stream is packets of several flows by turns, mostly one behind the other, with all that can happen to them.
type stream struct {
	roll  dice
	flows []spec // the packet that comes next in each, with the payload that is usual
	out   []item
}

func newStream(roll dice) *stream {
	s := &stream{roll: roll}
	for i := range 1 + roll(5) {
		f := oneTCP(1 + roll(40))
		if roll(3) == 0 {
			f = oneUDP(1 + roll(40))
		}
		f.v6, f.sport, f.id = roll(2) == 0, f.sport+uint16(i), uint16(65500+roll(36))
		if roll(2) == 0 {
			f.flags = 0
		}
		s.flows = append(s.flows, f)
	}
	return s
}

// turn adds what one of the flows sends next.
func (s *stream) turn(t testing.TB) {
	f := &s.flows[s.roll(len(s.flows))]
	usual := len(f.payload)
	now := *f
	switch s.roll(90) {
	case 0: // lost
		*f = now.after(usual)
		return
	case 1: // shorter
		now.payload = random(s.roll(usual))
	case 2: // longer
		now.payload = random(usual + 1 + s.roll(3))
	case 3:
		now.tcp |= tcpPSH
	case 4: // the usual size, options, TOS or TTL changes from here on
		f.payload, f.options, f.tos, f.ttl = random(1+s.roll(40)), random(4*s.roll(3)), byte(s.roll(4)), byte(60+s.roll(3))
		return
	case 5:
		f.ack, f.window, f.tcp, f.label = f.ack+1, f.window-1, f.tcp^tcpECE, f.label+1
		return
	case 6:
		f.id += uint16(s.roll(3)) // one is lost, perhaps
		f.flags ^= layers.IPv4DontFragment
		return
	case 7: // one flag of all
		now.tcp ^= 1 << s.roll(8)
	case 8:
		now.sum = []sum{wrong, absent, undone}[s.roll(3)]
	case 9:
		s.addUndone(t, now)
		return
	case 10:
		s.addWhole(t, now)
		*f = now.after(usual)
		return
	case 11:
		s.addOpaque(t, now)
		return
	case 12:
		s.out = append(s.out, item{p: icmp(now.v6), as: foreign})
		return
	case 13: // one that was here already
		if n := len(s.out); n > 0 {
			s.out = append(s.out, s.out[s.roll(n)])
		}
		return
	case 14: // the last two change places
		if n := len(s.out); n > 1 {
			s.out[n-1], s.out[n-2] = s.out[n-2], s.out[n-1]
		}
		return
	}
	s.out = append(s.out, now.item(t))
	*f = now.after(usual)
}

func (s *stream) addUndone(t testing.TB, now spec) {
	it := now.with(bad(undone)).item(t)
	it.info = now.partialInfo()
	s.out = append(s.out, it)
}

func (s *stream) addWhole(t testing.TB, now spec) {
	it := now.with(bad(undone)).with(func(n *spec) { n.payload = random(3 * len(now.payload)) }).item(t)
	it.info = now.superInfo(len(now.payload))
	s.out = append(s.out, it)
}

func (s *stream) addOpaque(t testing.TB, now spec) {
	switch {
	case now.v6:
		s.out = append(s.out, item{p: extend(now.build(t), []byte{0, 43, 44, 60, 51, 50, 135}[s.roll(7)]), as: opaque})
		return
	case s.roll(3) == 0:
		now.ipOptions = 1 + s.roll(10)
	case s.roll(2) == 0:
		now.flags = layers.IPv4MoreFragments
	default:
		now.offset = uint16(1 + s.roll(100))
	}
	s.out = append(s.out, now.item(t))
}

// TestCoalesceStreams: whatever flows bring, split after coalesce is the identity, in order, and the runs are
// the twin's.
func TestCoalesceStreams(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	joined, packets := 0, 0
	for i := range 300 {
		s := newStream(rng.IntN)
		for range 150 {
			s.turn(t)
		}
		c := NewCoalescer([]int{2, 20, 64, 200}[i%4])
		c.TCP, c.UDP = i%10 != 8, i%10 != 9
		checkAgainstTwin(t, c, s.out)
		coalesce(c, s.out, func(round []item, runs []Run) {
			packets += len(round)
			for _, r := range runs {
				if len(r.Bufs) > 1 {
					joined += len(r.Bufs)
				}
			}
		})
	}
	if joined < packets/4 {
		t.Errorf("only %d of %d packets were joined: the streams put little to the test", joined, packets)
	}
}

// FuzzCoalesceStream takes a stream's turns from the input.
func FuzzCoalesceStream(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 5))
	for range 8 {
		turns := make([]byte, 200)
		for i := range turns {
			turns[i] = byte(rng.Uint32())
		}
		f.Add(turns)
	}
	f.Fuzz(func(t *testing.T, turns []byte) {
		turns = turns[:min(len(turns), 1000)]
		s := newStream(func(n int) int {
			if len(turns) == 0 {
				return 0
			}
			v := int(turns[0]) % n
			turns = turns[1:]
			return v
		})
		for len(turns) > 0 {
			s.turn(t)
		}
		checkAgainstTwin(t, NewCoalescer(64), s.out)
	})
}

// FuzzCoalesceBytes takes packets as they stand in the input, each behind its length. All that a caller checks is
// mended: lengths and the IPv4 header checksum.
func FuzzCoalesceBytes(f *testing.F) {
	for _, s := range []spec{oneTCP(20), oneUDP(20)} {
		for _, v6 := range []bool{false, true} {
			s.v6 = v6
			var in []byte
			for _, n := range follow(s, 4, 20) {
				p := n.build(f)
				in = append(binary.BigEndian.AppendUint16(in, uint16(len(p))), p...)
			}
			f.Add(in)
		}
	}
	f.Add(binary.BigEndian.AppendUint16(nil, 28))
	f.Fuzz(func(t *testing.T, in []byte) {
		var all []item
		for len(in) >= 2 && len(all) < 64 {
			n := min(int(binary.BigEndian.Uint16(in)), len(in)-2)
			p := bytes.Clone(in[2 : 2+n])
			in = in[2+n:]
			if mendIP(p) {
				all = append(all, item{p: p})
			}
		}
		coalesce(NewCoalescer(10), all, func(round []item, runs []Run) {
			for i := range round {
				round[i].p = zeroIsOnes(round[i].p)
			}
			var out []item
			for _, r := range runs {
				if len(r.Bufs) == 1 {
					out = append(out, item{p: zeroIsOnes(r.Bufs[0]), info: r.Info})
					continue
				}
				for _, p := range cut(t, bytes.Join(r.Bufs, nil), r.Info) {
					out = append(out, item{p: zeroIsOnes(p)})
				}
			}
			if len(out) != len(round) {
				t.Fatalf("%d packets came out, %d went in", len(out), len(round))
			}
			compareFlows(t, byFlow(round), byFlow(out))
		})
	})
}

// mendIP makes the IP header such as callers let through, and reports whether it could.
func mendIP(p []byte) bool {
	if len(p) < ipv4MinLen {
		return false
	}
	if p[0]>>4 == 6 {
		if len(p) < ipv6Len {
			return false
		}
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6Len))
		return true
	}
	n := transportOf(p)
	if p[0]>>4 != 4 || n < ipv4MinLen || n > len(p) {
		return false
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^slowSum(p[:n], 0))
	return true
}

// zeroIsOnes writes a TCP checksum of 0xffff as 0, which is the same number: Linux writes one, a sum's
// complement comes to the other.
func zeroIsOnes(p []byte) []byte {
	var l layout
	if l.read(p) && !l.udp && binary.BigEndian.Uint16(p[l.transport+tcpCsumOffset:]) == 0xffff {
		p = bytes.Clone(p)
		binary.BigEndian.PutUint16(p[l.transport+tcpCsumOffset:], 0)
	}
	return p
}
