//go:build linux

package link

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// packetJob is a UDP job: orders come over its TCP connection, datagrams through its door.
type packetJob struct {
	server *Server
	door   *door
	cookie []byte
	remote netip.Addr // of the TCP connection: datagrams from elsewhere are not its
	req    request

	mu     sync.Mutex
	client netip.AddrPort // where its datagrams come from; invalid until the first
	count  *counter
}

func (s *Server) newPacketJob(d *door, remote netip.Addr, req request) *packetJob {
	job := &packetJob{server: s, door: d, cookie: make([]byte, cookieLen), remote: remote, req: req, count: newCounter(0)}
	rand.Read(job.cookie) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, job)
	return job
}

func (s *Server) endPacketJob(job *packetJob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = slices.DeleteFunc(s.jobs, func(j *packetJob) bool { return j == job })
}

// packetJob is the job that a datagram belongs to, or nil.
func (s *Server) packetJob(d *door, from netip.Addr, cookie []byte) *packetJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, job := range s.jobs {
		if job.door == d && job.remote == from && subtle.ConstantTimeCompare(job.cookie, cookie) == 1 {
			return job
		}
	}
	return nil
}

// readPause keeps a socket that fails at every read from taking a whole processor.
const readPause = 10 * time.Millisecond

// readAll takes the door's datagrams until its socket is closed, and returns that error.
func (s *Server) readAll(d *door) error {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := d.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // the network's report about a datagram that was sent: nobody to tell
			sleepUntil(time.Now().Add(readPause), s.done)
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		cookie, kind, seq, ok := header(buf[:n])
		if !ok {
			continue
		}
		job := s.packetJob(d, from.Addr(), cookie)
		if job == nil {
			continue
		}
		job.mu.Lock()
		job.client = from
		if kind == kindCount {
			job.count.add(seq)
		}
		job.mu.Unlock()
		switch kind {
		case kindEcho:
			_, _ = d.udp.WriteToUDPAddrPort(buf[:n], from) // if it fails, the client misses the answer
		case kindProbe:
			_, _ = d.udp.WriteToUDPAddrPort(buf[:headerLen], from)
		}
	}
}

// obey answers the client's orders until it hangs up or its time is over.
func (j *packetJob) obey(conn *net.TCPConn) {
	for {
		var o order
		if readFrame(conn, &o) != nil {
			return
		}
		a, err := j.do(o)
		if err != nil {
			a.Error = err.Error()
		}
		if writeFrame(conn, a) != nil {
			return
		}
	}
}

func (j *packetJob) do(o order) (answer, error) {
	if err := j.check(o); err != nil {
		return answer{}, err
	}
	j.mu.Lock()
	client := j.client
	if o.Do == orderCount {
		j.count = newCounter(o.Count)
	}
	a := answer{tally: j.count.tally}
	j.mu.Unlock()
	switch o.Do {
	case orderCount, orderReport:
		return a, nil
	}
	if !client.IsValid() {
		return a, errors.New("no datagram of yours has come yet")
	}
	if o.Do == orderSend {
		return j.send(o, client)
	}
	b := make([]byte, o.Size-outerLen)
	putHeader(b, j.cookie, kindProbe, o.Seq)
	_, err := j.door.udp.WriteToUDPAddrPort(b, client)
	if errors.Is(err, unix.EMSGSIZE) {
		return answer{TooBig: true}, nil
	}
	return answer{}, err
}

// check holds an order to the limits.
func (j *packetJob) check(o order) error {
	most := countIn(j.req.each(), maxPacketRate)
	switch o.Do {
	case orderReport:
		return nil
	case orderCount:
		if o.Count < 1 || o.Count > most {
			return fmt.Errorf("%d datagrams: want 1 to %d", o.Count, most)
		}
		return nil
	case orderSend, orderProbe:
		if o.Size < minPacket || o.Size > maxPacket {
			return fmt.Errorf("packets of %d bytes: want %d to %d", o.Size, minPacket, maxPacket)
		}
	default:
		return fmt.Errorf("order %q is not known here", o.Do)
	}
	if o.Do == orderProbe {
		return nil
	}
	limit := j.server.cfg.Rate
	switch {
	case o.PerSecond < 1 || o.PerSecond > maxPacketRate:
		return fmt.Errorf("%d packets per second: want 1 to %d", o.PerSecond, maxPacketRate)
	case o.Count < 1 || o.Count > countIn(j.req.each(), o.PerSecond):
		return fmt.Errorf("%d packets at %d per second: longer than the %v asked for", o.Count, o.PerSecond, j.req.each())
	case o.Size > usualMTU:
		return fmt.Errorf("a stream of packets of %d bytes: at most %d", o.Size, usualMTU)
	case limit > 0 && int64(o.PerSecond)*int64(o.Size)*8 > limit:
		return fmt.Errorf("%d packets per second of %d bytes: this side allows %d bits per second", o.PerSecond, o.Size, limit)
	}
	return nil
}

// countIn is how many packets go out in a time; one at least.
func countIn(d time.Duration, perSecond int) int {
	return max(int(d*time.Duration(perSecond)/time.Second), 1)
}

func (j *packetJob) send(o order, client netip.AddrPort) (answer, error) {
	sent := sendCounted(o, j.cookie, j.server.done, func(b []byte) error {
		_, err := j.door.udp.WriteToUDPAddrPort(b, client)
		return err
	})
	select {
	case <-j.server.done:
		return answer{}, errors.New("the server ends")
	default:
		return answer{Sent: sent}, nil
	}
}

// sendCounted sends the order's datagrams evenly spread over time, and returns how many the kernel took.
func sendCounted(o order, cookie []byte, done <-chan struct{}, write func([]byte) error) int {
	b := make([]byte, o.Size-outerLen)
	rand.Read(b)
	start, sent := time.Now(), 0
	for i := range o.Count {
		if !sleepUntil(start.Add(time.Duration(i)*time.Second/time.Duration(o.PerSecond)), done) {
			break
		}
		putHeader(b, cookie, kindCount, uint32(i))
		if write(b) == nil {
			sent++
		}
	}
	return sent
}
