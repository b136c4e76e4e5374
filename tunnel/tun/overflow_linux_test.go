package tun

import (
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// What does not fit into the device's queue is counted, and nothing else is: sent is read plus overflown.
func TestOverflow(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			if n := d.Overflow(); n != 0 {
				t.Fatalf("overflow %d at first", n)
			}
			sent := uint64(0)
			fd := rawSocket(t)
			packet := outgoing(t, 1, 72)
			for range 5000 { // the queue holds 500
				switch err := unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])}); err {
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
			r := newReading(w, tunnel.BatchSize, none)
			read := uint64(0)
			for read < sent-lost {
				n, err := d.Queues()[0].Read(r.slab, r.ps, none)
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
