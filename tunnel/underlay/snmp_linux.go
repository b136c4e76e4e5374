package underlay

import (
	"strconv"
	"strings"

	"muslin/tunnel/kernel"
)

// udpCounters reads the counters of UDP over IPv4 from /proc/net/snmp, or of UDP over IPv6 from /proc/net/snmp6, by
// name: for all sockets of this network namespace, since it was made. It is nil when they cannot be read.
func udpCounters(six bool) map[string]uint64 {
	if six {
		data, err := kernel.ReadNet("snmp6")
		if err != nil {
			return nil
		}
		return parseSNMP6(string(data), "Udp6")
	}
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

// parseSNMP6 reads a protocol's lines, one counter each, whose names begin with the protocol (snmp6_seq_show in
// net/ipv6/proc.c). The names returned do not.
func parseSNMP6(data, protocol string) map[string]uint64 {
	counters := make(map[string]uint64)
	for line := range strings.Lines(data) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		if name, ok := strings.CutPrefix(fields[0], protocol); ok {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				counters[name] = n
			}
		}
	}
	return counters
}

// SendOverflow implements tunnel.Underlay. It counts for every UDP socket of the network namespace and the address
// family, from Open on.
//
// A socket without IP_RECVERR is told that its datagram was sent also when the outgoing queue dropped it
// (udp_send_skb in net/ipv4/udp.c); all that is left is the network namespace's counter. With IP_RECVERR the
// send would fail, but so would the next one after every ICMP error about an earlier datagram.
func (c *Conn) SendOverflow() uint64 {
	if now := udpCounters(c.six)["SndbufErrors"]; now > c.sndbufErrors {
		return now - c.sndbufErrors
	}
	return 0
}
