package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/sight"
	"muslin/encap"
)

// How a packet is sent.
const (
	fromPod  = "pod"  // by a socket in the pod's network namespace: it takes the pod's own way from its first step on
	fromHost = "host" // by this host, whose address the source is
	inPlace  = "host in the pod's name"
)

// sender is a packet that is ready to be sent.
type sender struct {
	packet sight.Packet
	how    string // fromPod, fromHost or inPlace
	space  string // the pod's network namespace, as it was found
	fd     int
	bytes  []byte
	to     unix.Sockaddr
	hold   int // a socket that has the source port; -1: none
}

func (s *sender) close() {
	unix.Close(s.fd)
	if s.hold >= 0 {
		unix.Close(s.hold)
	}
}

func (s *sender) send() error { return unix.Sendto(s.fd, s.bytes, 0, s.to) }

// newSender makes a packet from src ready to be sent in src's place.
func newSender(src, dst netip.Addr, proto string, port uint16) (*sender, error) {
	s := &sender{packet: sight.Packet{Src: src, Dst: dst, Proto: proto, DstPort: port}, hold: -1, fd: -1}
	here, err := hasAddress(src)
	if err != nil {
		return nil, err
	}
	if here {
		s.how = fromHost
		return s, s.open(false)
	}
	found, err := inNamespaceOf(src, func(path string) error {
		s.how, s.space = fromPod, path
		return s.open(false)
	})
	if found || err != nil {
		return s, err
	}
	s.how = inPlace
	return s, s.open(true)
}

// hasAddress reports whether an address is one of the network namespace that the calling thread is in.
func hasAddress(a netip.Addr) (bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("this host's addresses: %w", err)
	}
	return slices.ContainsFunc(all, func(have net.Addr) bool {
		p, ok := have.(*net.IPNet)
		if !ok {
			return false
		}
		ip, _ := netip.AddrFromSlice(p.IP)
		return ip.Unmap() == a
	}), nil
}

// maxSpaces is how many namespaces are looked into.
const maxSpaces = 5000

// inNamespaceOf runs f in the network namespace that has an address: of a process, or one that `ip netns` or Docker keeps
// a name for. false: none has.
func inNamespaceOf(a netip.Addr, f func(path string) error) (found bool, err error) {
	var paths []string
	for _, pattern := range []string{"/run/netns/*", "/run/docker/netns/*", "/proc/[0-9]*/ns/net"} {
		some, _ := filepath.Glob(pattern) // whose only error is a bad pattern
		paths = append(paths, some...)
	}
	seen := make(map[[2]uint64]bool)
	if own, ok := inode("/proc/self/ns/net"); ok {
		seen[own] = true
	}
	for _, path := range paths {
		id, ok := inode(path)
		if !ok || seen[id] || len(seen) > maxSpaces {
			continue
		}
		seen[id] = true
		if found, err = tryNamespace(path, a, f); found {
			return true, err
		}
	}
	return false, nil
}

func inode(path string) ([2]uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return [2]uint64{}, false
	}
	return [2]uint64{uint64(st.Dev), st.Ino}, true
}

// tryNamespace runs f there if the address is there, on a thread that ends with it.
func tryNamespace(path string, a netip.Addr, f func(string) error) (found bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and no UnlockOSThread: nobody else gets a thread that stands there
		space, failed := os.Open(path)
		if failed != nil {
			return
		}
		defer space.Close()
		if unix.Setns(int(space.Fd()), unix.CLONE_NEWNET) != nil {
			return
		}
		if has, failed := hasAddress(a); failed == nil && has {
			found, err = true, f(path)
		}
	}()
	<-done
	return found, err
}

// open makes the socket and the packet. A socket that is bound has the kernel write the IP header, and so choose the route as
// for any packet of the source; whole is for a source that is not ours: we write it.
func (s *sender) open(whole bool) (err error) {
	p := &s.packet
	p.ID = uint16(rand.Uint32())
	p.SrcPort = uint16(40000 + rand.IntN(20000))
	domain := unix.AF_INET
	if p.Dst.Is6() {
		domain = unix.AF_INET6
	}
	proto := map[string]int{sight.ICMP: unix.IPPROTO_ICMP, sight.TCP: unix.IPPROTO_TCP, sight.UDP: unix.IPPROTO_UDP}[p.Proto]
	if proto == unix.IPPROTO_ICMP && p.Dst.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	defer func() {
		if err != nil {
			s.close()
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				err = fmt.Errorf("%w: run this as root", err)
			}
		}
	}()
	if p.Proto != sight.ICMP && !whole {
		if err := s.takePort(domain); err != nil {
			return err
		}
	}
	socket := proto
	if whole {
		socket = unix.IPPROTO_RAW // with which we write the IP header (raw(7))
	}
	if s.fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, socket); err != nil {
		return os.NewSyscallError("open a raw socket", err)
	}
	if !whole {
		if err := unix.Bind(s.fd, sockaddr(p.Src, 0)); err != nil {
			return os.NewSyscallError("bind to "+p.Src.String(), err)
		}
	}
	s.bytes = transport(p, proto)
	if whole {
		s.bytes = append(ipHeader(p, proto, len(s.bytes)), s.bytes...)
	}
	s.to = sockaddr(p.Dst, 0)
	return nil
}

// takePort has a socket hold the source port, so that no other one of the pod gets the answer. It neither listens nor is
// connected: the kernel answers a SYN/ACK with RST, and so nothing of the connection is left.
func (s *sender) takePort(domain int) error {
	kind := unix.SOCK_STREAM
	if s.packet.Proto == sight.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open a socket", err)
	}
	s.hold = fd
	if err := unix.Bind(fd, sockaddr(s.packet.Src, 0)); err != nil {
		return os.NewSyscallError("bind to "+s.packet.Src.String(), err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		s.packet.SrcPort = uint16(a.Port)
	case *unix.SockaddrInet6:
		s.packet.SrcPort = uint16(a.Port)
	}
	return nil
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
	}
	return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
}

// transport is what is behind the IP header: an echo request with ping(8)'s payload, a SYN, or a datagram without payload.
func transport(p *sight.Packet, proto int) []byte {
	var b []byte
	sum := 0 // where the checksum lies
	switch p.Proto {
	case sight.ICMP:
		b = make([]byte, 8+56)
		b[0] = 8
		if p.Dst.Is6() {
			b[0] = 128
		}
		binary.BigEndian.PutUint16(b[4:], p.ID)
		binary.BigEndian.PutUint16(b[6:], 1)
		sum = 2
	case sight.TCP:
		b = make([]byte, 20)
		binary.BigEndian.PutUint32(b[4:], rand.Uint32())
		b[12], b[13] = 5<<4, 0x02 // data offset, SYN
		binary.BigEndian.PutUint16(b[14:], 64240)
		sum = 16
	case sight.UDP:
		b = make([]byte, 8)
		binary.BigEndian.PutUint16(b[4:], 8)
		sum = 6
	}
	if p.Proto != sight.ICMP {
		binary.BigEndian.PutUint16(b, p.SrcPort)
		binary.BigEndian.PutUint16(b[2:], p.DstPort)
	}
	if p.Proto == sight.ICMP && !p.Dst.Is6() {
		binary.BigEndian.PutUint16(b[sum:], ^encap.Sum(b, 0))
		return b
	}
	// The pseudo header (RFC 793, RFC 8200 section 8.1).
	pseudo := append(p.Src.AsSlice(), p.Dst.AsSlice()...)
	pseudo = append(pseudo, 0, byte(proto), byte(len(b)>>8), byte(len(b)))
	binary.BigEndian.PutUint16(b[sum:], ^encap.Sum(append(pseudo, b...), 0))
	return b
}

// ipHeader is for a packet that we write from its beginning. The kernel fills in IPv4's checksum (raw(7)).
func ipHeader(p *sight.Packet, proto, length int) []byte {
	if p.Dst.Is6() {
		b := make([]byte, 40)
		b[0], b[6], b[7] = 0x60, byte(proto), 64
		binary.BigEndian.PutUint16(b[4:], uint16(length))
		copy(b[8:], p.Src.AsSlice())
		copy(b[24:], p.Dst.AsSlice())
		return b
	}
	b := make([]byte, 20)
	b[0], b[8], b[9] = 0x45, 64, byte(proto)
	binary.BigEndian.PutUint16(b[2:], uint16(20+length))
	copy(b[12:], p.Src.AsSlice())
	copy(b[16:], p.Dst.AsSlice())
	return b
}
