package gso

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// standing is how a packet stands to the runs that are open.
type standing uint8

const (
	joinable standing = iota // of a flow, and fit to stand in a run
	lone                     // of a flow, to be passed on by itself: the flow's run ends before it
	opaque                   // of what flow cannot be read: every run ends before it
	foreign                  // of no flow that has runs
)

// candidate is what is to be known of a packet before it joins a run.
type candidate struct {
	layout
	payload int    // bytes
	hash    uint64 // of the flow: addresses, protocol, ports
	push    bool   // TCP: PSH is set, so the run ends behind it
}

// read looks at the IP packet p, for a candidate that is all zero. Nothing but the IP header is known to be sound. seed goes into the hash.
func (k *candidate) read(p []byte, seed uint64) standing {
	if len(p) < ipv4MinLen {
		return opaque
	}
	var proto byte
	is := joinable
	switch {
	case p[0] == 4<<4|5: // no options
		h := (*[ipv4MinLen]byte)(p)
		fragment := binary.BigEndian.Uint16(h[6:])
		if int(binary.BigEndian.Uint16(h[2:])) != len(p) || fragment&0x3fff != 0 {
			return opaque
		}
		if fragment&^ipv4DF != 0 {
			is = lone // the reserved bit
		}
		proto = h[9]
		k.v6, k.transport = false, ipv4MinLen
		k.hash = binary.LittleEndian.Uint64(h[12:])
	case p[0]>>4 == 6 && len(p) >= ipv6Len:
		h := (*[ipv6Len]byte)(p)
		if int(binary.BigEndian.Uint16(h[4:])) != len(p)-ipv6Len {
			return opaque
		}
		proto = h[6]
		k.v6, k.transport = true, ipv6Len
		k.hash = mix(binary.LittleEndian.Uint64(h[8:])^seed, binary.LittleEndian.Uint64(h[16:])) ^
			mix(binary.LittleEndian.Uint64(h[24:])^bits.ReverseBytes64(seed), binary.LittleEndian.Uint64(h[32:]))
	default:
		return opaque
	}

	t := p[k.transport:]
	switch proto {
	case protoTCP:
		if len(t) < tcpMinLen {
			return opaque
		}
		n := int(t[12]>>4) * 4
		if n < tcpMinLen || n > len(t) {
			return opaque
		}
		k.udp, k.headers, k.payload = false, k.transport+n, len(t)-n
		flags := t[13]
		k.push = flags&tcpPSH != 0
		if t[12]&0x0f != 0 || flags&^(tcpPSH|tcpECE) != tcpACK || k.payload == 0 {
			is = lone
		}
	case protoUDP:
		if len(t) < udpLen {
			return opaque
		}
		k.udp, k.headers, k.payload = true, k.transport+udpLen, len(t)-udpLen
		if int(binary.BigEndian.Uint16(t[4:])) != len(t) || binary.BigEndian.Uint16(t[6:]) == 0 || k.payload == 0 {
			is = lone
		}
	case protoICMP, protoICMPv6:
		return foreign
	default:
		if k.v6 {
			return opaque // an extension header, perhaps
		}
		return foreign
	}
	k.hash = mix(k.hash^seed, uint64(proto)<<32|uint64(binary.LittleEndian.Uint32(t)))
	return is
}

// mix is a hash of two words: both halves of their product, after an odd constant has kept 0 out (the
// multiplier of SplitMix64; Steele, Lea, Flood 2014).
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xbf58476d1ce4e5b9)
	return hi ^ lo
}

// flowTable says which run is the last of each flow. A flow is known by its hash alone: two that share one
// end each other's runs, and no packet joins a run before all its headers were compared.
//
// Every flow since the last Reset has a place, so none has to make way for another. Nothing is ever erased
// either: runs are numbered through, and a place is free when its run has a number from before first.
type flowTable struct {
	places []place // a power of 2, at least twice as many as there can be flows
	first  uint64
	seed   uint64 // so that nobody can choose flows that crowd
}

type place struct {
	run uint64
	tag uint32 // of the flow's hash
}

func newFlowTable(flows int) flowTable {
	return flowTable{places: make([]place, 1<<bits.Len(uint(max(2*flows-1, 1)))), first: 1, seed: rand.Uint64()}
}

// find returns the place of the flow, or the free place that it would take.
func (t *flowTable) find(hash uint64) *place {
	tag := uint32(hash >> 32)
	for i := int(uint32(hash)); ; i++ {
		l := &t.places[i&(len(t.places)-1)]
		if l.run < t.first || l.tag == tag {
			return l
		}
	}
}

// knows reports whether l, found for a flow, is the flow's.
func (t *flowTable) knows(l *place) bool { return l.run >= t.first }

// forget frees every place. next is the number of the next run.
func (t *flowTable) forget(next uint64) { t.first = next }
