//go:build linux

package labtest

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

// ListenUDP opens a UDP socket in a node, with a receive buffer of so many bytes (SO_RCVBUFFORCE): the test must not
// be the one who loses packets. The test closes it at its end.
func ListenUDP(t *testing.T, n *lab.Node, at netip.AddrPort, buffer int) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := n.Do(func() (err error) {
		network := "udp4"
		if at.Addr().Is6() {
			network = "udp6"
		}
		conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw := Must(conn.SyscallConn())(t)
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	}); err != nil || failed != nil {
		t.Fatal("set SO_RCVBUFFORCE:", err, failed)
	}
	return conn
}

// HardwareAddr is the MAC of a host's underlay interface.
func HardwareAddr(t *testing.T, h *lab.Host) (mac net.HardwareAddr) {
	t.Helper()
	if err := h.Do(func() error {
		iface, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = iface.HardwareAddr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mac
}
