package encap

// Fault says what is wrong with a received datagram or an inner packet. The order is that in which the
// checks are made.
type Fault uint8

const (
	FaultNone      Fault = iota
	FaultShort           // shorter than its framing plus an IP header
	FaultFlags           // VXLAN flags other than 0x08, or a reserved bit set
	FaultVNI             // another VXLAN network
	FaultMAC             // inner destination MAC is not this VTEP's
	FaultOwnMAC          // inner source MAC is this VTEP's: a loop, or an impostor
	FaultVLAN            // inner frame carries an 802.1Q or 802.1ad tag
	FaultARP             // inner frame is ARP; flannel's schema leaves nothing to resolve
	FaultNotIP           // any other EtherType
	FaultIPv6            // inner IPv6, on an overlay that carries IPv4
	FaultIPv4            // inner IPv4, on an overlay that carries IPv6
	FaultIPVersion       // the IP version field is neither 4 nor 6
	FaultIPHeader        // IPv4: IHL below 5, or past the end of the packet
	FaultIPLength        // the length that the header states and the received one differ
)
