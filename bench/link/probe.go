//go:build linux

package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Loss is what a loss measure found: datagrams at a modest rate, evenly spread.
type Loss struct {
	PerSecond   int     `json:"packets_per_second"`
	PacketBytes int     `json:"packet_bytes"` // with IP and UDP headers
	Sent        int     `json:"sent"`
	Share       float64 `json:"lost_share"` // of Sent, 0 to 1
	tally
}

const (
	lossPerSecond = 1000
	lossBytes     = 1200                   // 9.6 Mbit/s at that rate
	lossSettle    = 300 * time.Millisecond // and a round trip, for the last one to arrive
)

// lossOrder is the loss measure's offer: within the limit of rate bits per second (0 is none) and the MTU.
func lossOrder(each time.Duration, rate int64, mtu int) order {
	o := order{Do: orderSend, Size: lossBytes, PerSecond: lossPerSecond}
	if mtu > minPacket {
		o.Size = min(o.Size, mtu)
	}
	if rate > 0 {
		o.PerSecond = int(min(int64(o.PerSecond), max(rate/int64(o.Size*8), 1)))
	}
	o.Count = countIn(each, o.PerSecond)
	return o
}

func newLoss(o order, sent int, t tally) (Loss, error) {
	l := Loss{PerSecond: o.PerSecond, PacketBytes: o.Size, Sent: sent, tally: t}
	if sent == 0 {
		return l, errors.New("no packet could be sent")
	}
	l.Share = float64(sent-t.Received) / float64(sent)
	if t.Received == 0 {
		return l, fmt.Errorf("all of %d packets of %d bytes were lost", sent, o.Size)
	}
	return l, nil
}

// lossTo sends and has the server count.
func (p *packets) lossTo(ctx context.Context, o order) (Loss, error) {
	if _, err := p.ctl.order(order{Do: orderCount, Count: o.Count}); err != nil {
		return Loss{}, err
	}
	sent := sendCounted(o, p.ctl.Cookie, ctx.Done(), func(b []byte) error {
		_, err := p.udp.Write(b)
		return err
	})
	sleepUntil(time.Now().Add(lossSettle+p.rtt), ctx.Done())
	a, err := p.ctl.order(order{Do: orderReport})
	if err != nil {
		return Loss{}, err
	}
	return newLoss(o, sent, a.tally)
}

// lossFrom has the server send, and counts.
func (p *packets) lossFrom(o order) (Loss, error) {
	type result struct {
		answer
		err error
	}
	sent := make(chan result, 1)
	if err := p.udp.SetReadDeadline(time.Time{}); err != nil {
		return Loss{}, err
	}
	go func() {
		a, err := p.ctl.order(o)
		// The last ones are on the way; then the reading below ends.
		if p.udp.SetReadDeadline(time.Now().Add(lossSettle+p.rtt)) != nil && err == nil {
			err = os.ErrClosed
		}
		sent <- result{a, err}
	}()
	c := newCounter(o.Count)
	var failed error
	for {
		n, err := p.udp.Read(p.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			failed = p.sendError(err)
			break
		}
		if cookie, kind, seq, ok := header(p.buf[:n]); ok && kind == kindCount && string(cookie) == string(p.ctl.Cookie) {
			c.add(seq)
		}
	}
	r := <-sent
	if err := errors.Join(r.err, failed); err != nil {
		return Loss{}, err
	}
	return newLoss(o, r.Sent, c.tally)
}

const (
	probeTries   = 3
	probeWaitMin = 100 * time.Millisecond // for the answer to a try
	probeWaitMax = 500 * time.Millisecond
)

// probeWait leaves room for a round trip that is slower than the first was.
func (p *packets) probeWait(sure bool) time.Duration {
	wait := max(3*p.rtt, probeWaitMin)
	if sure {
		wait *= 3
	}
	return min(wait, probeWaitMax)
}

// largestTo searches for the largest packet towards the server.
func (p *packets) largestTo() (Largest, error) {
	return p.largest(func(size int, wait time.Duration) (bool, error) {
		return p.ask(kindProbe, uint32(size), size, wait)
	})
}

// largestFrom searches for the largest packet from the server, which sends each one that is asked for.
func (p *packets) largestFrom() (Largest, error) {
	return p.largest(func(size int, wait time.Duration) (bool, error) {
		a, err := p.ctl.order(order{Do: orderProbe, Size: size, Seq: uint32(size)})
		if err != nil || a.TooBig {
			return false, err
		}
		if err := p.udp.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return false, err
		}
		return p.await(kindProbe, uint32(size))
	})
}

// largest tries each size several times, so that a loss by chance does not count.
func (p *packets) largest(try func(size int, wait time.Duration) (bool, error)) (Largest, error) {
	found, err := searchLargest(p.mtu, func(size int, sure bool) (bool, error) {
		for range probeTries {
			if ok, err := try(size, p.probeWait(sure)); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	})
	return Largest{Found: found, Expected: p.mtu}, err
}
