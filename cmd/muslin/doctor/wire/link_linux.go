package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"muslin/encap"
)

// Link is an Ethernet link that this host is on.
type Link struct {
	Index int
	MAC   encap.MAC
	Addr  netip.Addr // ours there, of IPv4; invalid: we ask without telling one, as a host does that is about to take an address (RFC 5227)
}

const (
	arpLen               = 28 // of IPv4 on Ethernet (RFC 826)
	arpRequest, arpReply = 1, 2

	whoHasTries = 2
	whoHasApart = 2 * time.Millisecond // so that many questions are no burst
)

// WhoHas asks the hosts of a link which of them have these addresses of IPv4, twice each, and returns all that say so, by
// their MACs. With an Addr the question is the one that the kernel asks of a neighbour, so that a host with two interfaces
// there answers as it does to every other. It waits so long for the answers to each round.
func WhoHas(ctx context.Context, l Link, addrs []netip.Addr, within time.Duration) (map[netip.Addr][]encap.MAC, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ARP)))
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w: it takes CAP_NET_RAW: run this as root", err)
	}
	file := os.NewFile(uintptr(fd), "packet socket")
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: l.Index}); err != nil {
		return nil, os.NewSyscallError("bind packet socket", err)
	}
	everybody := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: l.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	found := make(map[netip.Addr][]encap.MAC)
	buf := make([]byte, 1<<9)
	read := func(until time.Time) {
		if d, ok := ctx.Deadline(); ok && d.Before(until) {
			until = d
		}
		if file.SetReadDeadline(until) != nil {
			return
		}
		for {
			n, err := file.Read(buf)
			if err != nil {
				return
			}
			if who, mac, ok := parseARP(buf[:n]); ok && slices.Contains(addrs, who) && !slices.Contains(found[who], mac) {
				found[who] = append(found[who], mac)
			}
		}
	}
	for range whoHasTries {
		for _, a := range addrs {
			if ctx.Err() != nil {
				return found, nil
			}
			if err := unix.Sendto(fd, appendARP(nil, l, a), 0, everybody); err != nil {
				return found, os.NewSyscallError("send ARP", err)
			}
			read(time.Now().Add(whoHasApart))
		}
		read(time.Now().Add(within))
	}
	return found, nil
}

// appendARP appends a request (RFC 826).
func appendARP(buf []byte, l Link, target netip.Addr) []byte {
	buf = append(buf, 0, 1, 8, 0, 6, 4, 0, arpRequest)
	buf = append(buf, l.MAC[:]...)
	from := [4]byte{}
	if l.Addr.Is4() {
		from = l.Addr.As4()
	}
	buf = append(buf, from[:]...)
	buf = append(buf, 0, 0, 0, 0, 0, 0)
	to := target.As4()
	return append(buf, to[:]...)
}

// parseARP reads who says in a reply that he has an address.
func parseARP(p []byte) (who netip.Addr, mac encap.MAC, ok bool) {
	if len(p) < arpLen || binary.BigEndian.Uint64(p) != 0x0001_0800_0604_0000|arpReply {
		return who, mac, false
	}
	return netip.AddrFrom4([4]byte(p[14:18])), encap.MAC(p[8:14]), true
}

// SendTo sends a UDP datagram of IPv4 in a frame to a MAC, whatever the kernel knows of the neighbours.
func (l Link) SendTo(mac encap.MAC, from, to netip.AddrPort, payload []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w: it takes CAP_NET_RAW: run this as root", err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.Index, Halen: uint8(len(mac))}
	copy(at.Addr[:], mac[:])
	return os.NewSyscallError("send datagram", unix.Sendto(fd, appendUDP(nil, from, to, payload), 0, at))
}
