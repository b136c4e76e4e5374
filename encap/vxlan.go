package encap

import "encoding/binary"

// VXLANHeadroom is the VXLAN header (8 bytes) and the inner Ethernet header (14 bytes).
const VXLANHeadroom = vxlanLen + ethernetLen

const (
	vxlanLen    = 8
	ethernetLen = 14
	// ethernetMinPayload is what a NIC pads a frame's payload to: 64 bytes less the header (14) and
	// the FCS (4).
	ethernetMinPayload = 46

	vxlanFlagVNI = 0x08 // the I flag: the VNI field is valid

	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8
	etherTypeIPv6 = 0x86dd
)

// VXLAN frames inner packets as RFC 7348 does, with an inner Ethernet header whose addresses are the two
// VTEPs' MACs, as flannel's kernel devices expect.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|R|R|R|R|I|R|R|R|            Reserved                           |  RFC 7348, section 5
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                VXLAN Network Identifier (VNI) |   Reserved    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                 inner destination MAC (6 bytes)               |  IEEE 802.3
//	+                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                               |                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+   inner source MAC (6 bytes)  +
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           EtherType           |  inner IP packet ...
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type VXLAN struct {
	vni    [4]byte // VNI and its reserved byte, as on the wire
	own    MAC
	family Family
}

// NewVXLAN makes the framing of one VTEP of IPv4: its network and its own MAC, which is the source of what it
// sends and the only destination that it accepts.
func NewVXLAN(vni VNI, own MAC) *VXLAN {
	f := &VXLAN{own: own}
	binary.BigEndian.PutUint32(f.vni[:], vni.Uint32()<<8)
	return f
}

// NewVXLAN6 makes that of a VTEP of IPv6.
func NewVXLAN6(vni VNI, own MAC) *VXLAN {
	f := NewVXLAN(vni, own)
	f.family = IPv6
	return f
}

func (*VXLAN) Name() string { return "vxlan" }

func (f *VXLAN) Family() Family { return f.family }

func (*VXLAN) Headroom() int { return VXLANHeadroom }

// MinPayload is the length below which an inner packet may come with Ethernet padding behind it.
func (*VXLAN) MinPayload() int { return ethernetMinPayload }

// Encode writes the 22 bytes before the inner packet; EtherType follows the packet's IP version.
func (f *VXLAN) Encode(buf []byte, dst MAC) {
	h := buf[:VXLANHeadroom:VXLANHeadroom]
	binary.BigEndian.PutUint32(h[0:], vxlanFlagVNI<<24)
	copy(h[4:8], f.vni[:])
	copy(h[8:14], dst[:])
	copy(h[14:20], f.own[:])
	etherType := uint16(etherTypeIPv4)
	if len(buf) > VXLANHeadroom && buf[VXLANHeadroom]>>4 == 6 {
		etherType = etherTypeIPv6
	}
	binary.BigEndian.PutUint16(h[20:], etherType)
}

// Decode accepts just what a flannel node sends. Reserved bits must be 0, because the kernel's own
// device drops them too (docs/flannel.md), and a bit we do not know may change what the rest
// means: GBP and GPE do.
func (f *VXLAN) Decode(d []byte) ([]byte, Fault) {
	if len(d) < VXLANHeadroom+ipv4MinLen {
		return nil, FaultShort
	}
	if binary.BigEndian.Uint32(d) != vxlanFlagVNI<<24 || d[7] != 0 {
		return nil, FaultFlags
	}
	if [4]byte(d[4:8]) != f.vni {
		return nil, FaultVNI
	}
	if MAC(d[8:14]) != f.own {
		return nil, FaultMAC
	}
	if MAC(d[14:20]) == f.own {
		return nil, FaultOwnMAC
	}
	switch binary.BigEndian.Uint16(d[20:]) {
	case etherTypeIPv4:
		if f.family != IPv4 {
			return nil, FaultIPv4
		}
		return d[VXLANHeadroom:], FaultNone
	case etherTypeIPv6:
		if f.family != IPv6 {
			return nil, FaultIPv6
		}
		if len(d) < VXLANHeadroom+ipv6Len {
			return nil, FaultShort
		}
		return d[VXLANHeadroom:], FaultNone
	case etherTypeVLAN, etherTypeQinQ:
		return nil, FaultVLAN
	case etherTypeARP:
		return nil, FaultARP
	}
	return nil, FaultNotIP
}
