package capture

import (
	"encoding/binary"
	"encoding/json"
	"hash/maphash"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"muslin/tunnel"
)

const (
	sweepEvery = time.Second

	// Flows are kept in parts with a lock each, so that workers seldom meet and a sweep holds nobody up for long.
	flowShards = 16

	// maxFlows is how many are kept; the one that was quiet for longest makes room, and is told of. Some 400 bytes each.
	maxFlows = 1 << 16

	// maxEnded is how many that made room wait in a part for the next sweep.
	maxEnded = maxFlows / flowShards / 4

	// How long a flow may be quiet before it has ended.
	idleTCP   = 5 * time.Minute
	idleOther = time.Minute
	lingerTCP = 5 * time.Second // after the last FIN or an RST, for what is under way
)

// flowKey is a flow's addresses and ports, seen from who began it.
type flowKey struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16 // ICMP: 0, and the identifier of an echo
	protocol         uint8
}

func (k flowKey) reversed() flowKey {
	return flowKey{k.dst, k.src, k.dstPort, k.srcPort, k.protocol}
}

// way is what went one way.
type flowWay struct {
	packets, bytes uint64
	flags          uint8 // TCP, all that there were
}

// flow is one flow. It stands in its part's list, in which the one seen last is last.
type flow struct {
	flowKey
	inbound    bool // the first packet
	peer       netip.Addr
	start, end time.Time
	told       time.Time // of it, last; zero: never
	there      flowWay   // as the first packet
	back       flowWay
	drops      map[string]uint64 // nil: none

	older, newer *flow
}

type flowShard struct {
	mu          sync.Mutex
	flows       map[flowKey]*flow
	first, last *flow // by end
	free        *flow // by newer
	ended       []flow
	lost        uint64 // could not be told
}

type flowTable struct {
	interval time.Duration
	seed     maphash.Seed
	shards   [flowShards]flowShard
}

func newFlowTable(interval time.Duration) *flowTable {
	t := &flowTable{interval: interval, seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].flows = make(map[flowKey]*flow)
	}
	return t
}

// seen takes an inner packet, of which p is the beginning and length the bytes.
func (t *flowTable) seen(s *tunnel.Seen, p []byte, length int) {
	peer, reason := netip.Addr{}, ""
	if s.Peer != nil {
		peer = s.Peer.PublicIP
	} else if s.Outer && s.Inbound {
		peer = s.Src.Addr()
	}
	if s.Point == tunnel.PointDrop {
		reason = s.Reason.String()
	}
	t.add(s.At, s.Inbound, p, length, s.Segments, peer, reason)
}

// add takes an IP packet, or a superpacket. What is none is left out.
func (t *flowTable) add(at time.Time, inbound bool, p []byte, length, segments int, peer netip.Addr, reason string) {
	key, flags, ok := parseFlow(p)
	if !ok {
		return
	}
	// Both directions are of one part: the lesser end comes first.
	hashed, back := key, key.reversed()
	if c := key.src.Compare(key.dst); c > 0 || c == 0 && key.srcPort > key.dstPort {
		hashed = back
	}
	sh := &t.shards[maphash.Comparable(t.seed, hashed)%flowShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f, way := sh.flows[key], (*flowWay)(nil)
	if f != nil {
		way = &f.there
	} else if f = sh.flows[back]; f != nil {
		way = &f.back
	} else {
		f = sh.begin(key)
		f.inbound, f.start = inbound, at
		way = &f.there
	}
	sh.touch(f)
	if at.After(f.end) {
		f.end = at
	}
	if peer.IsValid() {
		f.peer = peer
	}
	if reason != "" {
		// What is dropped when it is to be sent, or delivered, was counted before.
		if f.drops == nil {
			f.drops = make(map[string]uint64)
		}
		f.drops[reason] += uint64(segments)
		if reason == tunnel.DropSendFailed.String() || reason == tunnel.DropSendBufferFull.String() || reason == tunnel.DropTUNWrite.String() {
			return
		}
	}
	way.packets += uint64(segments)
	way.bytes += uint64(length)
	way.flags |= flags
}

// begin makes a flow, in place of the quietest where there are too many.
func (sh *flowShard) begin(key flowKey) *flow {
	if len(sh.flows) >= maxFlows/flowShards {
		quiet := sh.first
		if len(sh.ended) < maxEnded {
			sh.ended = append(sh.ended, *quiet)
		} else {
			sh.lost++
		}
		sh.remove(quiet)
	}
	f := sh.free
	if f == nil {
		f = new(flow)
	} else {
		sh.free = f.newer
	}
	*f = flow{flowKey: key}
	sh.flows[key] = f
	return f
}

// remove takes f out, to be used again.
func (sh *flowShard) remove(f *flow) {
	delete(sh.flows, f.flowKey)
	sh.unlink(f)
	f.newer, sh.free = sh.free, f
}

func (sh *flowShard) unlink(f *flow) {
	if f.older != nil {
		f.older.newer = f.newer
	} else if sh.first == f {
		sh.first = f.newer
	}
	if f.newer != nil {
		f.newer.older = f.older
	} else if sh.last == f {
		sh.last = f.older
	}
	f.older, f.newer = nil, nil
}

// touch makes f the last.
func (sh *flowShard) touch(f *flow) {
	if sh.last == f {
		return
	}
	sh.unlink(f)
	if f.older = sh.last; f.older != nil {
		f.older.newer = f
	} else {
		sh.first = f
	}
	sh.last = f
}

// Why a flow is told of.
const (
	flowActive  = "active"  // it goes on: these are its counts so far
	flowClosed  = "closed"  // TCP ended it
	flowIdle    = "idle"    // it was quiet for long
	flowEvicted = "evicted" // there were too many
	flowStopped = "stopped" // the capture ended
)

// toldFlow is a flow and why it is told.
type toldFlow struct {
	flow
	why string
}

// sweep is the flows to tell of: those that have ended, and those that were last told an interval ago; with all, every one.
// Beside that it is how many could not be told.
func (t *flowTable) sweep(now time.Time, all bool) (told []toldFlow, lost uint64) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for k := range sh.ended {
			told = append(told, toldFlow{sh.ended[k], flowEvicted})
		}
		sh.ended = sh.ended[:0]
		for f := sh.first; f != nil; {
			next := f.newer
			why := f.state(now, t.interval)
			if all && (why == "" || why == flowActive) {
				why = flowStopped
			}
			if why != "" {
				told = append(told, toldFlow{*f, why})
				told[len(told)-1].drops = maps.Clone(f.drops) // which goes on to be written to
			}
			switch why {
			case "":
			case flowActive:
				f.told = now
			default:
				sh.remove(f)
			}
			f = next
		}
		lost += sh.lost
		sh.mu.Unlock()
	}
	return told, lost
}

// state is why it is to be told of now; empty: it is not.
func (f *flow) state(now time.Time, interval time.Duration) string {
	const fin, rst = 1, 4
	quiet := now.Sub(f.end)
	tcp := f.protocol == protoTCP
	closed := tcp && ((f.there.flags|f.back.flags)&rst != 0 || f.there.flags&f.back.flags&fin != 0)
	switch {
	case closed && quiet >= lingerTCP:
		return flowClosed
	case tcp && quiet >= idleTCP, !tcp && quiet >= idleOther:
		return flowIdle
	case now.Sub(later(f.start, f.told)) >= interval && f.end.After(f.told):
		return flowActive
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoSCTP  = 132
)

// parseFlow reads an IP packet's flow, and TCP's flags. A fragment but the first, and what is behind an extension header, has
// no ports.
func parseFlow(p []byte) (k flowKey, flags uint8, ok bool) {
	var rest []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		k.src, k.dst, k.protocol = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9]
		if n := int(p[0]&0xf) * 4; n >= 20 && n <= len(p) && binary.BigEndian.Uint16(p[6:])&0x1fff == 0 {
			rest = p[n:]
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		k.src, k.dst, k.protocol = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[6]
		rest = p[40:]
	default:
		return k, 0, false
	}
	switch k.protocol {
	case protoTCP, protoUDP, protoSCTP:
		if len(rest) >= 4 {
			k.srcPort, k.dstPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
		if k.protocol == protoTCP && len(rest) >= 14 {
			flags = rest[13]
		}
	case protoICMP, protoICMP6:
		if len(rest) >= 8 && isEcho(k.protocol, rest[0]) {
			k.srcPort = binary.BigEndian.Uint16(rest[4:])
			k.dstPort = k.srcPort
		}
	}
	return k, flags, true
}

func isEcho(protocol, kind uint8) bool {
	if protocol == protoICMP {
		return kind == 0 || kind == 8
	}
	return kind == 128 || kind == 129
}

// flowLine is a flow as it is written. Others read it: fields are added, never renamed or removed (docs/capture.md).
type flowLine struct {
	Start        time.Time         `json:"start"`
	End          time.Time         `json:"end"`
	Why          string            `json:"why"`
	Direction    string            `json:"direction"` // of the first packet: "out" or "in"
	Protocol     string            `json:"protocol"`
	Src          netip.Addr        `json:"src"`
	SrcPort      uint16            `json:"src_port"`
	Dst          netip.Addr        `json:"dst"`
	DstPort      uint16            `json:"dst_port"`
	Peer         string            `json:"peer"`
	Packets      uint64            `json:"packets"`
	Bytes        uint64            `json:"bytes"`
	ReplyPackets uint64            `json:"reply_packets"`
	ReplyBytes   uint64            `json:"reply_bytes"`
	Flags        string            `json:"tcp_flags"`
	ReplyFlags   string            `json:"reply_tcp_flags"`
	Drops        map[string]uint64 `json:"drops"`
}

// appendJSON appends the flow's line, without its end.
func (f *toldFlow) appendJSON(b []byte) []byte {
	line := flowLine{
		Start: f.start.UTC(), End: f.end.UTC(), Why: f.why, Direction: direction(f.inbound), Protocol: protocolName(f.protocol),
		Src: f.src, SrcPort: f.srcPort, Dst: f.dst, DstPort: f.dstPort, Packets: f.there.packets, Bytes: f.there.bytes,
		ReplyPackets: f.back.packets, ReplyBytes: f.back.bytes, Flags: flagLetters(f.there.flags), ReplyFlags: flagLetters(f.back.flags), Drops: f.drops,
	}
	if f.peer.IsValid() {
		line.Peer = f.peer.String()
	}
	if line.Drops == nil {
		line.Drops = map[string]uint64{}
	}
	j, err := json.Marshal(line)
	if err != nil {
		panic(err) // there is nothing in it that JSON has not
	}
	return append(b, j...)
}

func direction(inbound bool) string {
	if inbound {
		return "in"
	}
	return "out"
}

// flagLetters are TCP's flags as tcpdump writes them, in its order.
func flagLetters(flags uint8) string {
	var s strings.Builder
	for i, letter := range "FSRP.UEW" {
		if flags&(1<<i) != 0 {
			s.WriteRune(letter)
		}
	}
	return s.String()
}
