//go:build linux

package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"
)

const (
	pingBytes   = 64              // of payload, each way
	pingWarmUp  = 3               // round trips that are not counted
	pingSamples = 200000          // at most; at 15 µs each that is 3 s
	pingTimeout = 1 * time.Second // after which a UDP ping counts as lost
	stallTime   = 3 * time.Second // after which TCP does: it sends again after 0.2, 0.6, 1.4 s
)

// Latency is what a round-trip measure found, in microseconds. A percentile that has too few round trips
// behind it is null.
type Latency struct {
	RoundTrips int      `json:"round_trips"`
	Lost       int      `json:"lost"` // UDP only
	Min        float64  `json:"min_us"`
	P50        float64  `json:"p50_us"`
	P99        *float64 `json:"p99_us"`  // null below 100 round trips
	P999       *float64 `json:"p999_us"` // null below 1000
	Max        float64  `json:"max_us"`
}

// summarise sorts the samples.
func summarise(samples []time.Duration, lost int) Latency {
	slices.Sort(samples)
	l := Latency{RoundTrips: len(samples), Lost: lost}
	if len(samples) == 0 {
		return l
	}
	// The nearest rank: the least sample that at least this share of all are not above.
	rank := func(perMille int) float64 {
		return micros(samples[(len(samples)*perMille+999)/1000-1])
	}
	l.Min, l.P50, l.Max = micros(samples[0]), rank(500), micros(samples[len(samples)-1])
	if len(samples) >= 100 {
		p := rank(990)
		l.P99 = &p
	}
	if len(samples) >= 1000 {
		p := rank(999)
		l.P999 = &p
	}
	return l
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// pingPong does one round trip after the other for d, and as much longer as it takes to have one that
// counts. once reports whether the answer came; an error ends
// it all.
func pingPong(d time.Duration, once func(seq uint32) (bool, error)) (Latency, error) {
	var samples []time.Duration
	lost := 0
	end := time.Now().Add(d)
	for seq := uint32(0); len(samples) < pingSamples; seq++ {
		before := time.Now()
		if before.After(end) && len(samples)+lost > 0 {
			break
		}
		came, err := once(seq)
		if err != nil {
			return summarise(samples, lost), err
		}
		switch {
		case !came:
			lost++
		case seq >= pingWarmUp:
			samples = append(samples, time.Since(before))
		}
	}
	if len(samples) == 0 {
		return Latency{Lost: lost}, errors.New("no answers")
	}
	return summarise(samples, lost), nil
}

// pingTCP needs the server's echo at the other end. Go sets TCP_NODELAY by itself.
func pingTCP(conn net.Conn, d time.Duration) (Latency, error) {
	var out, in [pingBytes]byte
	deadline := time.Time{}
	return pingPong(d, func(uint32) (bool, error) {
		// A new deadline costs as much as a tenth of a round trip on a fast link, so not each time.
		if now := time.Now(); deadline.Sub(now) < stallTime/2 {
			deadline = now.Add(stallTime)
			if err := conn.SetDeadline(deadline); err != nil {
				return false, err
			}
		}
		if _, err := conn.Write(out[:]); err != nil {
			return false, err
		}
		_, err := io.ReadFull(conn, in[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", stallTime/2)
		}
		return true, err
	})
}

// echo sends back what comes until the other side closes.
func echo(conn net.Conn, p *pacer, done <-chan struct{}) {
	var buf [pingBytes]byte
	for p.wait(len(buf), done) {
		n, err := conn.Read(buf[:])
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}
