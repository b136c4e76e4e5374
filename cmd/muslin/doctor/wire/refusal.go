package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Refusal is an ICMP error about a packet of ours.
type Refusal struct {
	By         netip.Addr // who sent it; ours: this kernel's own, as where nobody has the address on the link
	Type, Code byte
	MTU        int // of fragmentation needed or packet too big, 0: none named
}

// Port reports whether nobody listens at the port, or somebody says so (RFC 792; RFC 4443, section 3.1).
func (r *Refusal) Port() bool {
	return r != nil && (r.By.Is4() && r.Type == 3 && r.Code == 3 || r.By.Is6() && r.Type == 1 && r.Code == 4)
}

// Prohibited reports whether a firewall says that it was one (RFC 1812, section 5.2.7.1; RFC 4443; RFC 4890).
func (r *Refusal) Prohibited() bool {
	return r != nil && (r.By.Is4() && r.Type == 3 && (r.Code == 9 || r.Code == 10 || r.Code == 13) || r.By.Is6() && r.Type == 1 && (r.Code == 1 || r.Code == 5 || r.Code == 6))
}

// TooBig reports whether the packet was too long for a hop.
func (r *Refusal) TooBig() bool {
	return r != nil && (r.By.Is4() && r.Type == 3 && r.Code == 4 || r.By.Is6() && r.Type == 2)
}

// Unreachable reports whether there is no way, or nobody at its end.
func (r *Refusal) Unreachable() bool {
	if r == nil || r.Port() || r.Prohibited() || r.TooBig() {
		return false
	}
	return r.By.Is4() && r.Type == 3 || r.By.Is6() && r.Type == 1
}

var codes4 = map[byte]string{0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable", 4: "fragmentation needed",
	9: "network prohibited", 10: "host prohibited", 13: "communication prohibited by a filter"}

var codes6 = map[byte]string{0: "no route", 1: "prohibited by a filter", 3: "address unreachable", 4: "port unreachable", 5: "source address prohibited", 6: "route rejected"}

// String is for a sentence: "host unreachable, says 192.0.2.1".
func (r *Refusal) String() string {
	what := fmt.Sprintf("ICMP type %d code %d", r.Type, r.Code)
	if name := codes4[r.Code]; r.By.Is4() && r.Type == 3 && name != "" {
		what = name
	}
	if name := codes6[r.Code]; r.By.Is6() && r.Type == 1 && name != "" {
		what = name
	}
	if r.By.Is6() && r.Type == 2 {
		what = "packet too big"
	}
	return fmt.Sprintf("%s, says %s", what, r.By)
}

// parseError reads what comes with a message of the error queue (ip(7), IP_RECVERR; ipv6(7), IPV6_RECVERR): struct
// sock_extended_err of linux/errqueue.h, and behind it the sockaddr of who sent the ICMP error (SO_EE_OFFENDER). nil: it is
// of no router or host.
func parseError(oob []byte) *Refusal {
	const size = 16
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		four := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		six := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		e := m.Data
		if !four && !six || len(e) < size || e[4] != unix.SO_EE_ORIGIN_ICMP && e[4] != unix.SO_EE_ORIGIN_ICMP6 {
			continue
		}
		r := &Refusal{Type: e[5], Code: e[6]}
		switch family := e[size:]; {
		case four && len(family) >= 8:
			r.By = netip.AddrFrom4([4]byte(family[4:8])) // struct sockaddr_in
		case six && len(family) >= 24:
			r.By = netip.AddrFrom16([16]byte(family[8:24])) // struct sockaddr_in6
		default:
			continue
		}
		if r.TooBig() {
			r.MTU = int(min(binary.NativeEndian.Uint32(e[8:]), 1<<16))
		}
		return r
	}
	return nil
}
