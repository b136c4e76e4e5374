package encap

// UDP is flannel's udp framing: the datagram is the inner IP packet, with nothing before it. The zero value carries
// IPv4.
type UDP struct{ Inner Family }

func (UDP) Name() string { return "udp" }

func (f UDP) Family() Family { return f.Inner }

func (UDP) Headroom() int { return 0 }

// MinPayload is 0: no link in between pads.
func (UDP) MinPayload() int { return 0 }

func (UDP) Encode([]byte, MAC) {}

// Decode returns the datagram itself. The version nibble is all the framing there is.
func (f UDP) Decode(d []byte) ([]byte, Fault) {
	if len(d) < ipv4MinLen {
		return nil, FaultShort
	}
	switch version := d[0] >> 4; {
	case version == 4 && f.Inner == IPv4:
		return d, FaultNone
	case version == 4:
		return nil, FaultIPv4
	case version == 6 && f.Inner == IPv6:
		if len(d) < ipv6Len {
			return nil, FaultShort
		}
		return d, FaultNone
	case version == 6:
		return nil, FaultIPv6
	}
	return nil, FaultIPVersion
}
