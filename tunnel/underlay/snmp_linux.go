package underlay

import (
	"strconv"
	"strings"

	"muslin/tunnel/kernel"
)

// udpCounters reads the counters of UDP from /proc/net/snmp, by name: for all sockets of this network
// namespace, since it was made. It is nil when they cannot be read.
func udpCounters() map[string]uint64 {
	data, err := kernel.ReadNet("snmp")
	if err != nil {
		return nil
	}
	return parseSNMP(string(data), "Udp:")
}

// parseSNMP reads a protocol's two lines: the first names the fields of the second.
func parseSNMP(data, protocol string) map[string]uint64 {
	var names []string
	for line := range strings.Lines(data) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		counters := make(map[string]uint64)
		for i := 1; i < min(len(names), len(fields)); i++ {
			if n, err := strconv.ParseUint(fields[i], 10, 64); err == nil {
				counters[names[i]] = n
			}
		}
		return counters
	}
	return nil
}

// SendOverflow implements tunnel.Underlay. It counts for every UDP socket of the network namespace, from Open
// on.
//
// A socket without IP_RECVERR is told that its datagram was sent also when the outgoing queue dropped it
// (udp_send_skb in net/ipv4/udp.c); all that is left is the network namespace's counter. With IP_RECVERR the
// send would fail, but so would the next one after every ICMP error about an earlier datagram.
func (c *Conn) SendOverflow() uint64 {
	if now := udpCounters()["SndbufErrors"]; now > c.sndbufErrors {
		return now - c.sndbufErrors
	}
	return 0
}
