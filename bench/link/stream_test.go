//go:build linux

package link

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// inTime runs fn under a clock of its own and wants it to take that long.
func inTime(t *testing.T, want, tolerance time.Duration, fn func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		fn(t)
		if took := time.Since(start); took < want-tolerance || took > want+tolerance {
			t.Errorf("took %v, want %v", took, want)
		}
	})
}

func TestPacer(t *testing.T) {
	const rate, seconds = 8e6, 4
	// Four streams share the rate: 1 MB a second in all.
	inTime(t, seconds*time.Second-pacerDebt, 20*time.Millisecond, func(t *testing.T) {
		p := &pacer{rate: rate}
		var streams sync.WaitGroup
		for range 4 {
			streams.Go(func() {
				for range seconds * rate / 8 / 4 / p.chunk() {
					p.wait(p.chunk(), nil)
				}
			})
		}
		streams.Wait()
	})
}

func TestPacerDoesNotCatchUp(t *testing.T) {
	inTime(t, 2*time.Second-pacerDebt, 10*time.Millisecond, func(t *testing.T) {
		p := &pacer{rate: 8e6}
		p.wait(1, nil)
		time.Sleep(time.Second) // no credit for that, but for pacerDebt
		for range 100 {
			p.wait(10000, nil)
		}
		p.wait(1, nil)
	})
}

func TestPacerEnds(t *testing.T) {
	inTime(t, time.Second, 0, func(t *testing.T) {
		p := &pacer{rate: 8000}
		done := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(done) })
		p.wait(1e6, done)
		if p.wait(1, done) {
			t.Error("a turn after the end")
		}
	})
}

func TestPacerChunk(t *testing.T) {
	for rate, want := range map[int64]int{0: streamChunk, 1000: 512, 8e6: 20000, 1e12: streamChunk} {
		if got := (&pacer{rate: rate}).chunk(); got != want {
			t.Errorf("rate %d: chunks of %d bytes, want %d", rate, got, want)
		}
	}
}

// The two ends of a stream in one clock: what is counted is what is sent.
func TestStreamRate(t *testing.T) {
	inTime(t, 3*time.Second, 100*time.Millisecond, func(t *testing.T) {
		a, b := net.Pipe()
		var sending sync.WaitGroup
		sending.Go(func() { sendStream(a, 3*time.Second, &pacer{rate: 80e6}, nil) })
		got, err := receiveStream(b, 3*time.Second, &pacer{}, nil)
		b.Close()
		sending.Wait()
		if err != nil || got.Seconds != 2.7 || got.BitsPerSecond < 78e6 || got.BitsPerSecond > 82e6 {
			t.Errorf("%+v, %v; want 80 Mb/s over 2.7 s", got, err)
		}
	})
}

// A receiver that does not read does not hold the sender up beyond its time.
func TestSendStreamEnds(t *testing.T) {
	inTime(t, 3*time.Second+streamSlack, 0, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		sendStream(a, 3*time.Second, &pacer{}, nil)
	})
}

func TestReceiveStreamStalls(t *testing.T) {
	for name, c := range map[string]struct {
		bytes int // before the sender falls silent
		takes time.Duration
		words string
	}{
		"from the start": {0, firstByteTime, "no data came"},
		"soon":           {1000, 3*time.Second + firstByteTime, "stalled"},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, c.takes, 0, func(t *testing.T) {
				a, b := net.Pipe()
				defer a.Close()
				if c.bytes > 0 {
					go a.Write(make([]byte, c.bytes))
				}
				if got, err := receiveStream(b, 3*time.Second, &pacer{}, nil); err == nil || !strings.Contains(err.Error(), c.words) {
					t.Errorf("%+v, %v; want %q", got, err, c.words)
				}
			})
		})
	}
}

// A sender that gets no processor for longer than the whole measure is slow, and no failure.
func TestReceiveStreamSlow(t *testing.T) {
	inTime(t, 2*time.Second, 0, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		go func() {
			a.Write(make([]byte, 1000))
			time.Sleep(2 * time.Second)
			a.Write(make([]byte, 2000))
		}()
		got, err := receiveStream(b, MinEach, &pacer{}, nil)
		if err != nil || got.Bytes != 2000 || got.Seconds != 1.99 || got.BitsPerSecond != 2000*8/1.99 {
			t.Errorf("%+v, %v; want 2000 bytes in 1.99 s", got, err)
		}
	})
}

func TestReceiveStreamCutOff(t *testing.T) {
	inTime(t, 0, 0, func(t *testing.T) {
		a, b := net.Pipe()
		go func() {
			a.Write([]byte{1})
			a.Close()
		}()
		if got, err := receiveStream(b, 3*time.Second, &pacer{}, nil); err == nil {
			t.Errorf("%+v", got)
		}
	})
}

// slowEcho answers after a while, count times.
func slowEcho(conn net.Conn, after time.Duration, count int) {
	var buf [pingBytes]byte
	for range count {
		if _, err := io.ReadFull(conn, buf[:]); err != nil {
			return
		}
		time.Sleep(after)
		if _, err := conn.Write(buf[:]); err != nil {
			return
		}
	}
	io.Copy(io.Discard, conn)
}

func TestPingTCP(t *testing.T) {
	inTime(t, 3*time.Second, time.Millisecond, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		go slowEcho(b, time.Millisecond, 1e9)
		l, err := pingTCP(a, 3*time.Second)
		if err != nil || l.RoundTrips != 3001-pingWarmUp || l.Min != 1000 || l.P50 != 1000 || *l.P99 != 1000 || *l.P999 != 1000 || l.Max != 1000 {
			t.Errorf("%+v, %v; want 1 ms each", l, err)
		}
	})
}

func TestPingTCPStalls(t *testing.T) {
	inTime(t, 2*time.Second, stallTime/2, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		go slowEcho(b, time.Millisecond, 100)
		if l, err := pingTCP(a, 10*time.Second); err == nil || l.RoundTrips != 100-pingWarmUp {
			t.Errorf("%+v, %v; want an error after 100 answers", l, err)
		}
	})
}

func TestPingPongLoss(t *testing.T) {
	inTime(t, time.Second, pingTimeout, func(t *testing.T) {
		l, err := pingPong(time.Second, func(seq uint32) (bool, error) {
			time.Sleep(time.Millisecond)
			return seq%4 != 0, nil
		})
		// 0 to 1000 ms: 251 are lost, and of the others the first two, 1 and 2, do not count.
		if err != nil || l.Lost != 251 || l.RoundTrips != 748 {
			t.Errorf("%+v, %v; want one of four lost", l, err)
		}
	})
	inTime(t, time.Second, 10*time.Millisecond, func(t *testing.T) {
		if l, err := pingPong(time.Second, func(uint32) (bool, error) { time.Sleep(10 * time.Millisecond); return false, nil }); err == nil {
			t.Errorf("%+v; want an error where no answer came", l)
		}
	})
}

// A path as slow as the whole measure still gets its figure.
func TestPingPongSlow(t *testing.T) {
	inTime(t, 4*time.Second, 0, func(t *testing.T) {
		if l, err := pingPong(MinEach, func(uint32) (bool, error) { time.Sleep(time.Second); return true, nil }); err != nil || l.RoundTrips != 1 || l.P50 != 1e6 {
			t.Errorf("%+v, %v", l, err)
		}
	})
}

func TestSendCounted(t *testing.T) {
	inTime(t, 990*time.Millisecond, 0, func(t *testing.T) {
		c := newCounter(100)
		cookie := make([]byte, cookieLen)
		sent := sendCounted(order{Size: 1200, Count: 100, PerSecond: 100}, cookie, nil, func(b []byte) error {
			_, kind, seq, ok := header(b)
			if len(b) != 1200-outerLen || !ok || kind != kindCount {
				t.Errorf("%d bytes, %c, %v", len(b), kind, ok)
			}
			if seq%10 == 3 {
				return io.ErrShortWrite // the kernel did not take it
			}
			c.add(seq)
			return nil
		})
		if sent != 90 || c.tally != (tally{Received: 90}) {
			t.Errorf("sent %d, %+v", sent, c.tally)
		}
	})
}
