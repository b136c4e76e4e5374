package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

// Reply takes a plain packet, whatever lies before it.
func TestReply(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			q := d.Queues()[0]
			for seq, offset := range []int{gso.InfoLen, gso.InfoLen + 1, 100} {
				buf := append(bytes.Repeat([]byte{0xff}, offset), echo(t, uint16(seq))...)
				if err := q.Reply(buf, offset); err != nil {
					t.Fatal(err)
				}
				replies, _ := newReading(w, 4, vxlan).read(t, d, 1)
				checkReply(t, replies[0].bytes, uint16(seq))
			}
		})
	}
}

// The worker that reads replies while the other writes.
func TestReplyBesideWrite(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			const packets, size = 1000, 100
			fd := udpSocket(t, 5000, 2*packets*1000)
			done := make(chan error, 2)
			go func() {
				for i := range uint32(packets) {
					buf := append(bytes.Repeat([]byte{0xff}, 20), numbered(t, 2*i, size)...)
					err := d.Queues()[0].Reply(buf, 20)
					for w.napi() && errors.Is(err, unix.EAGAIN) { // unlike Write it does not wait
						runtime.Gosched()
						err = d.Queues()[0].Reply(buf, 20)
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			go func() {
				for i := range uint32(packets) {
					if n, err := d.Queues()[0].Write(runs(numbered(t, 2*i+1, size))); n != 1 || err != nil {
						done <- fmt.Errorf("Write = %d, %w", n, err)
						return
					}
				}
				done <- nil
			}()
			next := []uint32{0, 1}
			for buf := make([]byte, 2*size); next[0] < 2*packets || next[1] < 2*packets; {
				n, err := read(fd, buf)
				if err != nil {
					t.Fatalf("after %v: %v (%v)", next, err, <-done)
				}
				number := binary.BigEndian.Uint32(buf)
				if n != size-28 || number != next[number%2] {
					t.Fatalf("packet %d of %d bytes when %v were next", number, n, next)
				}
				next[number%2] += 2
			}
			for range 2 {
				if err := within(t, "Reply and Write", done); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
