package underlay

import (
	"strconv"
	"strings"

	"muslin/tunnel/kernel"
)

// A socket without IP_RECVERR is told that its datagram was sent also when the outgoing queue dropped it
// (udp_send_skb in net/ipv4/udp.c); all that is left is the network namespace's counter. With IP_RECVERR the
// send would fail, but so would the next one after every ICMP error about an earlier datagram.

// sndbufErrors reads SndbufErrors of UDP from /proc/net/snmp: for all sockets of this network namespace, since
// it was made. It is 0 when that cannot be read.
func sndbufErrors() uint64 {
	data, err := kernel.ReadNet("snmp")
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil { // the first line names the fields of the second
			names = fields
			continue
		}
		for i, name := range names {
			if name == "SndbufErrors" && i < len(fields) {
				n, _ := strconv.ParseUint(fields[i], 10, 64)
				return n
			}
		}
	}
	return 0
}

// SendOverflow implements tunnel.Underlay. It counts for every UDP socket of the network namespace, from Open
// on.
func (c *Conn) SendOverflow() uint64 {
	if now := sndbufErrors(); now > c.sndbufErrors {
		return now - c.sndbufErrors
	}
	return 0
}
