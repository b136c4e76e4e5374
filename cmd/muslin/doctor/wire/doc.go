// Package wire asks other hosts and watches what is on the wire: echo requests over the overlay and the underlay, datagrams of
// the overlay made by hand, and what of all that is seen at this host's interfaces. It judges nothing, changes nothing in the
// host, and knows no lease: its callers say whom to ask and what it means. It sends some dozens of small packets to each host
// that it is told to ask, and waits no longer than it is told to.
//
// What it opens are sockets of the calling process's network namespace; it takes CAP_NET_RAW.
package wire
