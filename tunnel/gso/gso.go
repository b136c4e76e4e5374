// Package gso splits superpackets into segments and joins segments into superpackets, for TCP and UDP over
// IPv4 and IPv6. It touches bytes only: no system call, clock, goroutine, or allocation once made.
//
// What a superpacket is to the kernel stands in its virtio_net_hdr, which is Info here (networking/tuntap
// and include/uapi/linux/virtio_net.h in the kernel; Virtual I/O Device 1.2, section 5.1.6).
package gso

import "encoding/binary"

// InfoLen is the size of struct virtio_net_hdr in bytes, without num_buffers: what a TUN device puts in
// front of each packet with IFF_VNET_HDR.
const InfoLen = 10

// Kind is what a superpacket is cut into: virtio_net_hdr's gso_type.
type Kind uint8

const (
	None  Kind = 0 // no superpacket
	TCPv4 Kind = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	TCPv6 Kind = 4 // VIRTIO_NET_HDR_GSO_TCPV6
	UDP   Kind = 5 // VIRTIO_NET_HDR_GSO_UDP_L4, since Linux 6.2, both IP versions
)

const (
	flagNeedsCsum = 1    // VIRTIO_NET_HDR_F_NEEDS_CSUM
	gsoECN        = 0x80 // VIRTIO_NET_HDR_GSO_ECN, or-ed to gso_type: the first segment carries CWR
)

// Info is what a virtio_net_hdr says about the packet behind it. The zero value is a packet that is
// complete as it is.
//
//	 0       1       2               4               6               8              10
//	+-------+-------+---------------+---------------+---------------+---------------+
//	| flags |gso_typ|    hdr_len    |   gso_size    |  csum_start   |  csum_offset  |  host byte order
//	+-------+-------+---------------+---------------+---------------+---------------+
type Info struct {
	NeedsCsum  bool   // the checksum field holds the pseudo-header's sum only
	ECN        bool   // TCP: CWR is set and belongs to the first segment
	Kind       Kind   // None: Size means nothing
	HeaderLen  uint16 // bytes of IP and transport header; a hint that Linux fills with more on forwarded packets
	Size       uint16 // payload bytes of each segment but the last
	CsumStart  uint16 // NeedsCsum: where the transport header begins in the packet
	CsumOffset uint16 // NeedsCsum: where the checksum field lies from there
}

// Decode reads b[:InfoLen].
func (i *Info) Decode(b []byte) {
	b = b[:InfoLen]
	*i = Info{
		NeedsCsum:  b[0]&flagNeedsCsum != 0,
		ECN:        b[1]&gsoECN != 0,
		Kind:       Kind(b[1] &^ gsoECN),
		HeaderLen:  binary.NativeEndian.Uint16(b[2:]),
		Size:       binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

// Encode writes b[:InfoLen].
func (i *Info) Encode(b []byte) {
	b = b[:InfoLen]
	b[0], b[1] = 0, byte(i.Kind)
	if i.NeedsCsum {
		b[0] = flagNeedsCsum
	}
	if i.ECN {
		b[1] |= gsoECN
	}
	binary.NativeEndian.PutUint16(b[2:], i.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], i.Size)
	binary.NativeEndian.PutUint16(b[6:], i.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], i.CsumOffset)
}

// Run is packets of one flow, one behind the other, as they are handed to the kernel in one call: a
// superpacket where there are several, the packet itself where there is one.
type Run struct {
	Info     Info
	Bufs     [][]byte // the bytes in order; borrowed from whoever gave the packets
	Segments int      // how many packets it stands for, at least 1
	Len      int      // bytes over all Bufs
}

// Segments is how many packets a superpacket of length bytes stands for; 1 for any other.
func (i *Info) Segments(length int) int {
	if payload := length - int(i.HeaderLen); i.Kind != None && i.Size > 0 && payload > int(i.Size) {
		return (payload + int(i.Size) - 1) / int(i.Size)
	}
	return 1
}
