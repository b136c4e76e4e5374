//go:build linux

package link

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// streamChunk is what one write or read of a stream takes at most, in bytes.
const streamChunk = 128 << 10

// streamSlack is how much longer than asked for a sender sends at most: the receiver ends the measure, after
// it has given a stream that seems to stall its time.
const streamSlack = 2 * firstByteTime

// pacer keeps what passes it to a rate; several streams may share one.
type pacer struct {
	rate int64 // bits per second; 0 is no limit

	mu   sync.Mutex
	next time.Time // when the next byte may go
}

// pacerDebt is how much of what a late sleeper missed is made up for.
const pacerDebt = 50 * time.Millisecond

// chunk is how many bytes to move at once: a fiftieth of a second's worth.
func (p *pacer) chunk() int {
	if p.rate == 0 {
		return streamChunk
	}
	return int(min(max(p.rate/8/50, 512), streamChunk))
}

// wait waits for the turn of n bytes. It reports false when done is closed before.
func (p *pacer) wait(n int, done <-chan struct{}) bool {
	if p.rate == 0 {
		return true
	}
	p.mu.Lock()
	if oldest := time.Now().Add(-pacerDebt); p.next.Before(oldest) {
		p.next = oldest
	}
	turn := p.next
	p.next = turn.Add(time.Duration(float64(n) * 8 / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	return sleepUntil(turn, done)
}

// sendStream writes random bytes until d and some slack are over, the other side has had enough and
// closes, or done is closed. How much arrived, the receiver says.
func sendStream(conn net.Conn, d time.Duration, p *pacer, done <-chan struct{}) {
	buf := make([]byte, p.chunk())
	rand.Read(buf) // never fails; a link that compresses gains nothing
	if conn.SetWriteDeadline(time.Now().Add(d+streamSlack)) != nil {
		return // closed
	}
	for p.wait(len(buf), done) {
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}

// Throughput is what a TCP measure found.
type Throughput struct {
	Streams       int     `json:"streams"`
	BitsPerSecond float64 `json:"bits_per_second"` // of TCP payload
	Bytes         int64   `json:"bytes"`           // that arrived while it was counted
	Seconds       float64 `json:"seconds"`         // that it was counted
}

// receiveStream reads for d from the first byte on, and counts from a tenth of that on: TCP has found its
// rate by then, or is near it. Where nothing came meanwhile it goes on until something does, so that a short
// measure between busy machines does not count as a stall.
func receiveStream(conn net.Conn, d time.Duration, p *pacer, done <-chan struct{}) (Throughput, error) {
	t := Throughput{Streams: 1}
	buf := make([]byte, p.chunk())
	if err := conn.SetReadDeadline(time.Now().Add(firstByteTime)); err != nil {
		return t, err
	}
	if _, err := conn.Read(buf); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("TCP connected, but no data came within %v: long packets are lost on the way", firstByteTime)
		}
		return t, err
	}
	first := time.Now()
	from, end := first.Add(d/10), first.Add(d)
	if err := conn.SetReadDeadline(end); err != nil {
		return t, err
	}
	for {
		n, err := conn.Read(buf)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), err == nil && now.After(end):
			if t.Bytes+int64(n) == 0 && now.Before(end.Add(firstByteTime)) {
				if err := conn.SetReadDeadline(end.Add(firstByteTime)); err != nil {
					return t, err
				}
				continue
			}
			if t.Bytes == 0 {
				t.Bytes, end = int64(n), now
			}
			return t.over(end.Sub(from))
		case err != nil:
			return t, fmt.Errorf("the stream ended early: %w", err)
		case now.After(from):
			t.Bytes += int64(n)
		}
		if !p.wait(n, done) {
			return t, net.ErrClosed
		}
	}
}

func (t Throughput) over(d time.Duration) (Throughput, error) {
	t.Seconds = d.Seconds()
	t.BitsPerSecond = float64(t.Bytes) * 8 / t.Seconds
	if t.Bytes == 0 {
		return t, errors.New("the stream stalled: long packets are lost on the way, or nearly all packets")
	}
	return t, nil
}

// discard reads until the other side closes or d is over: closing with bytes unread would send a reset that
// overtakes what was written last.
func discard(conn net.Conn, d time.Duration) {
	if conn.SetReadDeadline(time.Now().Add(d)) == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}
