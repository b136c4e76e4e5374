package encap

// UDP is flannel's udp framing: the datagram is the inner IP packet, with nothing before it.
type UDP struct{}

func (UDP) Name() string { return "udp" }

func (UDP) Headroom() int { return 0 }

// MinPayload is 0: no link in between pads.
func (UDP) MinPayload() int { return 0 }

func (UDP) Encode([]byte, MAC) {}

// Decode returns the datagram itself. The version nibble is all the framing there is.
func (UDP) Decode(d []byte) ([]byte, Fault) {
	if len(d) < ipv4MinLen {
		return nil, FaultShort
	}
	switch d[0] >> 4 {
	case 4:
		return d, FaultNone
	case 6:
		return nil, FaultIPv6
	}
	return nil, FaultIPVersion
}
