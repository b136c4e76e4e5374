package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	snap = 512 // bytes of a packet that are looked at, from the IP header on

	// short is the length of a packet up to which it is looked at whoever sent it: that of an echo of the overlay, and no
	// segment of a busy stream.
	short = 300

	kinds = 4096 // of sightings that are kept; one kind more is not counted
)

// WatchConfig says what is looked at: short UDP datagrams to Port, all from and to Hosts, echo replies with ID, and ICMP errors that say unreachable.
type WatchConfig struct {
	Port  uint16
	Hosts []netip.Addr // 16 at most of both families
	ID    uint16
}

// Watch sees packets at all interfaces of this network namespace: those that come before any filter of the kernel's but XDP
// and where they enter, those that leave behind all of them.
type Watch struct {
	file *os.File
	done chan struct{}

	mu   sync.Mutex
	seen map[Sighting]int
}

// OpenWatch begins to watch. It takes CAP_NET_RAW.
func OpenWatch(cfg WatchConfig) (*Watch, error) {
	// Protocol 0 gets nothing until bind, so that nothing comes in past the filter.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w: it takes CAP_NET_RAW: run this as root", err)
	}
	if err := setWatch(fd, cfg); err != nil {
		unix.Close(fd)
		return nil, err
	}
	w := &Watch{file: os.NewFile(uintptr(fd), "packet socket"), done: make(chan struct{}), seen: make(map[Sighting]int)}
	go w.run()
	return w, nil
}

func setWatch(fd int, cfg WatchConfig) error {
	raw, err := bpf.Assemble(watchProgram(cfg))
	if err != nil {
		return fmt.Errorf("assemble packet filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return os.NewSyscallError("set SO_ATTACH_FILTER", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return os.NewSyscallError("set PACKET_AUXDATA", err)
	}
	return os.NewSyscallError("bind packet socket", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}))
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// watchProgram is written as a chain: each rule accepts, or goes on with the next.
func watchProgram(cfg WatchConfig) []bpf.Instruction {
	const proto4, proto6 = 9, 6
	accept, refuse := bpf.RetConstant{Val: snap}, bpf.RetConstant{Val: 0}
	var four, six []bpf.Instruction
	for _, h := range cfg.Hosts {
		if h.Is4() {
			b := h.As4()
			n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			for _, at := range []uint32{12, 16} {
				four = append(four, bpf.LoadAbsolute{Off: at, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: 1}, accept)
			}
			continue
		}
		b := h.As16()
		for _, at := range []uint32{8, 24} {
			for i := range uint32(4) {
				n := uint32(b[4*i])<<24 | uint32(b[4*i+1])<<16 | uint32(b[4*i+2])<<8 | uint32(b[4*i+3])
				six = append(six, bpf.LoadAbsolute{Off: at + 4*i, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: uint8(2*(3-i) + 1)})
			}
			six = append(six, accept)
		}
	}
	// 4: UDP of IPv4, no later fragment; echo replies; then by port, if it is short.
	v4 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 2}, bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1}, refuse,
		bpf.LoadMemShift{Off: 0},
		bpf.LoadAbsolute{Off: proto4, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMP, SkipTrue: 8},
		bpf.LoadIndirect{Off: 0, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unreachable4, SkipTrue: 1}, accept,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: echoReply4, SkipTrue: 1}, refuse,
		bpf.LoadIndirect{Off: 4, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(cfg.ID), SkipTrue: 1}, accept,
		bpf.LoadAbsolute{Off: proto4, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1}, refuse,
	}
	v4 = append(v4, four...)
	v4 = append(v4, bpf.LoadExtension{Num: bpf.ExtLen}, bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: short, SkipTrue: 1}, refuse,
		bpf.LoadIndirect{Off: 2, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(cfg.Port), SkipTrue: 1}, accept, refuse)
	v6 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: proto6, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 8},
		bpf.LoadAbsolute{Off: ipv6Len, Size: 1}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unreachable6, SkipTrue: 1}, accept,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: echoReply6, SkipTrue: 1}, refuse,
		bpf.LoadAbsolute{Off: ipv6Len + 4, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(cfg.ID), SkipTrue: 1}, accept,
		bpf.LoadAbsolute{Off: proto6, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1}, refuse,
	}
	v6 = append(v6, six...)
	v6 = append(v6, bpf.LoadExtension{Num: bpf.ExtLen}, bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: short, SkipTrue: 1}, refuse,
		bpf.LoadAbsolute{Off: ipv6Len + 2, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(cfg.Port), SkipTrue: 1}, accept, refuse)
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtProto},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 1},
		refuse,
		bpf.Jump{Skip: uint32(len(v4))},
	}
	return append(append(program, v4...), v6...)
}

func (w *Watch) run() {
	defer close(w.done)
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	buf, oob := make([]byte, snap), make([]byte, 128)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, failed = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if failed != nil || !ok {
			continue
		}
		s, ok := parse(buf[:n], partialSum(oob[:oobn]))
		if !ok {
			continue
		}
		s.Iface, s.Out = link.Ifindex, link.Pkttype == unix.PACKET_OUTGOING
		w.mu.Lock()
		if len(w.seen) < kinds || w.seen[s] > 0 {
			w.seen[s]++
		}
		w.mu.Unlock()
	}
}

// partialSum reports whether a packet's checksum is left to be filled in or was found right already (packet(7),
// PACKET_AUXDATA; linux/if_packet.h).
func partialSum(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return true
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)&(unix.TP_STATUS_CSUMNOTREADY|unix.TP_STATUS_CSUM_VALID) != 0
		}
	}
	return true
}

// Seen is every kind of sighting so far, with how many there were.
func (w *Watch) Seen() map[Sighting]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.seen)
}

// Close ends watching.
func (w *Watch) Close() error {
	err := w.file.Close()
	<-w.done
	return err
}
