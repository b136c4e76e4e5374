//go:build linux

package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// probeEarlyFilter gives a socket a filter that lets in one address of the loopback network, sends to it from
// another one and from that, and takes the filter off again. Socket filters are older than any kernel that Go
// runs on, but what emulates Linux may take one and not run it.
func probeEarlyFilter() Probe {
	s, err := openUDP(loopback)
	if err != nil {
		return answered("UDP socket", err)
	}
	defer s.close()
	to, err := s.local()
	if err != nil {
		return answered("UDP socket", err)
	}
	friend, stranger := endpoint{Addr: [4]byte{127, 0, 0, 1}}, endpoint{Addr: [4]byte{127, 0, 0, 2}}
	if err := setFilter(s.fd, friend.Addr); err != nil {
		return answered("SO_ATTACH_FILTER", err, unix.ENOPROTOOPT, unix.EPERM, unix.EACCES)
	}
	for _, from := range []endpoint{stranger, friend} {
		sender, err := openUDP(from)
		if err != nil {
			return answered("UDP socket", err)
		}
		err = sender.send(to, from.Addr[:], 0)
		sender.close()
		if err != nil {
			return answered("a datagram over the loopback interface", err)
		}
	}
	buf := make([]byte, len(friend.Addr)+1)
	got, _, err := s.read(context.Background(), buf, time.Now().Add(100*time.Millisecond))
	if err != nil {
		return answered("a datagram that the filter lets in", err)
	}
	if [4]byte(got) != friend.Addr {
		return Probe{Answer: No, Reason: "the kernel took a socket filter, and let in what it refuses"}
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return Probe{Answer: No, Err: err, Reason: fmt.Sprintf("a socket filter can be attached, but not taken off again: %v", err)}
	}
	return given("a socket filter tells source addresses apart")
}

// setFilter gives a socket a filter that lets in what comes from source: 12 bytes into the network header,
// which is at SKF_NET_OFF (linux/filter.h).
func setFilter(fd int, source [4]byte) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0xfff00000 + 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(source[:]), SkipFalse: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
}
