package tun

import (
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// What does not fit into the device's queue is counted, and nothing else is: sent is read plus overflown.
func TestOverflow(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			if n := d.Overflow(); n != 0 {
				t.Fatalf("overflow %d at first", n)
			}
			sent := uint64(0)
			fd := rawSocket(t)
			packet := numbered(t, 1, 100)
			copy(packet[12:20], []byte{10, 9, 0, 1, 10, 9, 0, 2})
			for range 5000 { // the queue holds 500
				switch err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 0, 2}}); err {
				case nil:
					sent++
				case unix.ENOBUFS: // never got as far as the device
				default:
					t.Fatal(err)
				}
			}
			lost := d.Overflow()
			if lost == 0 || lost >= sent {
				t.Fatalf("overflow %d of %d", lost, sent)
			}
			bufs, sizes := make([][]byte, tunnel.BatchSize), make([]int, tunnel.BatchSize)
			for i := range bufs {
				bufs[i] = make([]byte, 2000)
			}
			read := uint64(0)
			for read < sent-lost {
				n, err := d.Read(bufs, sizes, 0)
				if err != nil {
					t.Fatal(err)
				}
				read += uint64(n)
			}
			if read+d.Overflow() != sent {
				t.Errorf("%d read and %d overflown of %d sent", read, d.Overflow(), sent)
			}
		})
	}
}
