//go:build linux

package link

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Inside calls fn where sockets are to be opened, for example in another network namespace. fn starts no
// goroutine. A nil Inside is where the process is.
type Inside func(fn func() error) error

func (in Inside) do(fn func() error) error {
	if in == nil {
		return fn()
	}
	return in(fn)
}

// interfaceMTU is the MTU in bytes of the interface that has the address, or 0 where none has it.
func (in Inside) interfaceMTU(addr netip.Addr) (mtu int) {
	_ = in.do(func() error {
		interfaces, err := net.Interfaces()
		for _, i := range interfaces {
			addrs, _ := i.Addrs() // an interface that has just gone has none
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == addr {
					mtu = i.MTU
				}
			}
		}
		return err
	})
	return min(mtu, maxPacket)
}

// udpBuffer holds some seconds of the loss measure: what is lost is to be lost on the way, not in a socket
// whose reader had no CPU.
const udpBuffer = 4 << 20

// prepareUDP makes every datagram of conn go out whole or not at all. IP_PMTUDISC_PROBE sets DF and heeds
// the interface's MTU but not a path MTU that was learned before (ip(7), since Linux 2.6.22): the path is to
// be tried, not believed.
func prepareUDP(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer) != nil { // not root
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer) // what net.core.rmem_max lets it be
		}
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}); err != nil {
		return err
	}
	return failed
}

// sleepUntil waits until t, and reports false when done is closed before.
func sleepUntil(t time.Time, done <-chan struct{}) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}
