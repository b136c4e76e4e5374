package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/capture/filter"
	"muslin/tunnel"
)

// device is a device of the kernel's on which packets are seen that no VTEP of ours carries.
type device struct {
	name  string
	point tunnel.Points
	port  uint16         // outer: UDP from it or to it; 0: all packets
	peers *peerTable     // inner: who has the remote address; nil: nobody knows
	only  []netip.Prefix // inner: the overlay's networks, where the device has other packets, too: what is not a peer's is none of the overlay's
}

// packetSocket is an AF_PACKET socket on a device. It sees IP packets without their link header (SOCK_DGRAM, packet(7)).
type packetSocket struct {
	fd  int
	buf []byte
	oob []byte
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// openPacketSocket opens one that takes so many bytes of each packet at most.
func openPacketSocket(d *device, keep int) (*packetSocket, error) {
	face, err := net.InterfaceByName(d.name)
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", d.name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("capture on %s: %w: run this as root, or with CAP_NET_RAW", d.name, err)
	} else if err != nil {
		return nil, fmt.Errorf("capture on %s: socket AF_PACKET: %w", d.name, err)
	}
	s := &packetSocket{fd: fd, buf: make([]byte, 1<<17), oob: make([]byte, 256)}
	if err := s.set(d, face.Index, uint32(keep)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture on %s: %w", d.name, err)
	}
	return s, nil
}

func (s *packetSocket) set(d *device, index int, keep uint32) error {
	program, err := bpf.Assemble(d.program(keep))
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(program))
	for i, ins := range program {
		raw[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}); err != nil {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
	}
	// Of a packet that the filter has cut it says how long it was (packet(7), since 2.6.21).
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return fmt.Errorf("PACKET_AUXDATA: %w", err)
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes) // a small one loses more, and says so
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("SO_TIMESTAMPNS: %w", err)
	}
	// Only from here on packets come: those of other devices did not get in.
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// program is what the socket takes of the device's packets, which it sees from the IP header on: so many bytes of each.
func (d *device) program(keep uint32) []bpf.Instruction {
	switch {
	case d.port != 0:
		return udpPort(d.port, keep)
	case len(d.only) > 0:
		return inNetworks(d.only, keep)
	}
	return []bpf.Instruction{bpf.RetConstant{Val: keep}}
}

// udpPort lets UDP from and to a port pass, of IPv4 and IPv6, and fragments without ports.
func udpPort(port uint16, keep uint32) []bpf.Instruction {
	n := uint32(port)
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipFalse: 10}, // 2
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipFalse: 16}, // 4: reject
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 13}, // 6: accept
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 0, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: n, SkipTrue: 10}, // 9: accept
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: n, SkipTrue: 8},  // 11: accept
		bpf.Jump{Skip: 8},                                     // 12: reject
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipFalse: 7}, // 13: reject
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipFalse: 5}, // 15: reject
		bpf.LoadAbsolute{Off: 40, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: n, SkipTrue: 2}, // 17: accept
		bpf.LoadAbsolute{Off: 42, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: n, SkipFalse: 1}, // 19
		bpf.RetConstant{Val: keep},                            // 20: accept
		bpf.RetConstant{Val: 0},                               // 21: reject
	}
}

// inNetworks lets packets from and to these networks pass: what else passes the device is not copied.
func inNetworks(networks []netip.Prefix, keep uint32) []bpf.Instruction {
	var all []bpf.Instruction
	for _, n := range networks {
		version, ends := uint32(4), []uint32{12, 16} // where the source is, and the destination
		if n.Addr().Is6() {
			version, ends = 6, []uint32{8, 24}
		}
		var tests []bpf.Instruction
		for _, at := range ends {
			tests = append(tests, inNetwork(n, at, keep)...)
		}
		all = append(all,
			bpf.LoadAbsolute{Off: 0, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: version, SkipFalse: uint8(len(tests))})
		all = append(all, tests...)
	}
	return append(all, bpf.RetConstant{Val: 0})
}

// inNetwork takes a packet whose address at an offset is in the network, and else goes on behind itself.
func inNetwork(n netip.Prefix, at, keep uint32) (all []bpf.Instruction) {
	const perWord = 3
	words := (n.Bits() + 31) / 32
	addr := n.Masked().Addr().AsSlice()
	for i := range words {
		mask := ^uint32(0)
		if bits := n.Bits() - 32*i; bits < 32 {
			mask <<= 32 - bits
		}
		behind := uint8((words-i-1)*perWord + 1) // the words that follow, and what takes it
		all = append(all,
			bpf.LoadAbsolute{Off: at + uint32(4*i), Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(addr[4*i:]), SkipFalse: behind})
	}
	return append(all, bpf.RetConstant{Val: keep})
}

// pollEvery is how often a socket that nothing comes to looks whether it is to end.
const pollEvery = 100 * time.Millisecond

// received is a packet of a socket's.
type received struct {
	bytes  []byte // borrowed until the next call; none: it is not of IP
	length int    // of all that they are the beginning of
	at     time.Time
	out    bool
}

// receive takes the next packet. Where there is none within wait, ok is false.
func (s *packetSocket) receive(wait time.Duration) (p received, ok bool, err error) {
	n, oobn, _, from, err := unix.Recvmsg(s.fd, s.buf, s.oob, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) && wait > 0 {
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(wait/time.Millisecond)); n == 0 || errors.Is(err, unix.EINTR) {
			return p, false, nil
		} else if err != nil {
			return p, false, fmt.Errorf("poll: %w", err)
		}
		n, oobn, _, from, err = unix.Recvmsg(s.fd, s.buf, s.oob, unix.MSG_DONTWAIT)
	}
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return p, false, nil
	case err != nil:
		return p, false, fmt.Errorf("receive: %w", err)
	}
	ll, is := from.(*unix.SockaddrLinklayer)
	if !is || ll.Protocol != htons(unix.ETH_P_IP) && ll.Protocol != htons(unix.ETH_P_IPV6) {
		return p, true, nil
	}
	p = received{bytes: s.buf[:n], length: n, at: time.Now(), out: ll.Pkttype == unix.PACKET_OUTGOING}
	p.read(s.oob[:oobn])
	return p, true, nil
}

// read takes what the kernel says beside a packet: when it came (SO_TIMESTAMPNS), and how long it is (PACKET_AUXDATA).
func (p *received) read(oob []byte) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16:
			p.at = time.Unix(int64(nativeUint64(data)), int64(nativeUint64(data[8:])))
		case h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= 8:
			// struct tpacket_auxdata (linux/if_packet.h): a status, then the length before the filter has cut it.
			p.length = max(p.length, int(binary.NativeEndian.Uint32(data[4:])))
		}
		oob = rest
	}
}

// lost is how many packets there was no room for, since the last call.
func (s *packetSocket) lost() uint64 {
	st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(st.Drops)
}

// watch hands over what is wanted of a device until ctx ends, and what had come until then.
func (d *device) watch(ctx context.Context, s *packetSocket, w *Wanted, f *filter.Filter, give func(r *Record) error, lost func(n uint64)) error {
	defer unix.Close(s.fd)
	defer func() { lost(s.lost()) }()
	asked := new(filter.Packet)
	r := new(Record)
	var end time.Time // zero: ctx has not ended
	for end.IsZero() || time.Now().Before(end) {
		wait := pollEvery
		if ctx.Err() != nil {
			wait = 0
			if end.IsZero() {
				end = time.Now().Add(patience)
			}
		}
		p, ok, err := s.receive(wait)
		switch {
		case err != nil:
			return fmt.Errorf("capture on %s: %w", d.name, err)
		case !ok && wait == 0:
			return nil
		case !ok:
			if err := give(nil); err != nil {
				return err
			}
			continue
		case len(p.bytes) == 0:
			continue
		}
		remote, _ := ends(p.bytes, p.out)
		*r = Record{At: p.at, Point: d.point, Inbound: !p.out, Segments: 1, Length: p.length, Data: p.bytes[:min(len(p.bytes), w.Snap)]}
		if d.point == tunnel.PointOuter {
			r.Peer = remote
		} else {
			var known bool
			if r.Peer, known = d.peers.of(remote); !known && d.only != nil {
				continue
			}
		}
		asked.Bytes, asked.Length, asked.Inbound = p.bytes, p.length, !p.out
		if !w.ofPeer(remote, d.point == tunnel.PointOuter) || !f.Match(asked) {
			continue
		}
		if err := give(r); err != nil {
			return err
		}
	}
	return nil
}

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
