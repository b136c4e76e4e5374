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
	port  uint16                                     // outer: UDP from it or to it; 0: all packets
	peers func(remote netip.Addr) (netip.Addr, bool) // inner: who has the remote address; false: the packet is none of the overlay's. nil: all are
}

// packetSocket is an AF_PACKET socket on a device. It sees IP packets without their link header (SOCK_DGRAM, packet(7)).
type packetSocket struct {
	fd  int
	buf []byte
	oob []byte
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func openPacketSocket(d *device) (*packetSocket, error) {
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
	if err := s.set(d, face.Index); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("capture on %s: %w", d.name, err)
	}
	return s, nil
}

func (s *packetSocket) set(d *device, index int) error {
	if d.port != 0 {
		program, err := bpf.Assemble(udpPort(d.port))
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

// udpPort is a program that lets UDP from and to a port pass, of IPv4 and IPv6, and fragments without ports.
func udpPort(port uint16) []bpf.Instruction {
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
		bpf.RetConstant{Val: 1 << 18},                         // 20: accept
		bpf.RetConstant{Val: 0},                               // 21: reject
	}
}

// pollEvery is how often a socket that nothing comes to looks whether it is to end.
const pollEvery = 100 * time.Millisecond

// receive takes the next packet: its bytes, borrowed until the next call, when it came, and whether it goes out; no bytes: it
// is not of IP. Where there is none within wait, ok is false.
func (s *packetSocket) receive(wait time.Duration) (p []byte, at time.Time, out, ok bool, err error) {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, int(wait/time.Millisecond)); n == 0 || errors.Is(err, unix.EINTR) {
		return nil, at, false, false, nil
	} else if err != nil {
		return nil, at, false, false, fmt.Errorf("poll: %w", err)
	}
	n, oobn, _, from, err := unix.Recvmsg(s.fd, s.buf, s.oob, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil, at, false, false, nil
	case err != nil:
		return nil, at, false, false, fmt.Errorf("receive: %w", err)
	}
	ll, is := from.(*unix.SockaddrLinklayer)
	if !is || ll.Protocol != htons(unix.ETH_P_IP) && ll.Protocol != htons(unix.ETH_P_IPV6) {
		return nil, at, false, true, nil
	}
	return s.buf[:n], timestamp(s.oob[:oobn]), ll.Pkttype == unix.PACKET_OUTGOING, true, nil
}

// timestamp is SO_TIMESTAMPNS's, or now.
func timestamp(oob []byte) time.Time {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16 {
			sec, nsec := int64(nativeUint64(data)), int64(nativeUint64(data[8:]))
			return time.Unix(sec, nsec)
		}
		oob = rest
	}
	return time.Now()
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
		p, at, out, ok, err := s.receive(wait)
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
		case len(p) == 0:
			continue
		}
		remote, _ := ends(p, out)
		*r = Record{At: at, Point: d.point, Inbound: !out, Segments: 1, Length: len(p), Data: p[:min(len(p), w.Snap)]}
		if d.point == tunnel.PointOuter {
			r.Peer = remote
		} else if d.peers != nil {
			var known bool
			if r.Peer, known = d.peers(remote); !known {
				continue
			}
		}
		asked.Bytes, asked.Length, asked.Inbound = p, len(p), !out
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
