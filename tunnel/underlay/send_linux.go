package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// sendState is what Send reuses, so that a datagram costs no allocation: golang.org/x/net wants a
// net.Addr for each message, and takes one that we overwrite in place.
type sendState struct {
	msgs  []ipv4.Message
	addrs []net.UDPAddr
	index []int    // index[k]: which datagram of the batch is in msgs[k]
	tos   [][]byte // ready-made control messages, by ECN codepoint
}

func (s *sendState) init() {
	s.msgs = make([]ipv4.Message, tunnel.BatchSize)
	s.addrs = make([]net.UDPAddr, tunnel.BatchSize)
	s.index = make([]int, tunnel.BatchSize)
	for i := range s.msgs {
		s.addrs[i].IP = make(net.IP, 4)
		s.msgs[i].Addr = &s.addrs[i]
		s.msgs[i].Buffers = make([][]byte, 1)
	}
	s.tos = make([][]byte, 4)
	for ecn := 1; ecn < 4; ecn++ {
		s.tos[ecn] = tosMessage(uint32(ecn))
	}
}

// tosMessage is a control message that sets the TOS byte of one datagram: ip(7), IP_TOS; as a
// per-datagram option since Linux 3.13.
func tosMessage(tos uint32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	putCmsg(b, unix.IPPROTO_IP, unix.IP_TOS, 4)
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], tos)
	return b
}

// Send implements tunnel.Underlay. Datagrams of one flow go through one socket in the order of ds.
func (c *Conn) Send(ds []tunnel.Datagram) error {
	for len(ds) > tunnel.BatchSize {
		if err := c.Send(ds[:tunnel.BatchSize]); err != nil {
			return err
		}
		ds = ds[tunnel.BatchSize:]
	}
	var used [senders]bool
	for i := range ds {
		ds[i].Err = nil
		used[ds[i].Flow%senders] = true
	}
	for s := range c.packets {
		if !used[s] {
			continue
		}
		if err := c.sendThrough(s, ds); err != nil {
			return err
		}
	}
	return nil
}

// sendThrough sends those datagrams of ds whose flows belong to socket s.
func (c *Conn) sendThrough(s int, ds []tunnel.Datagram) error {
	st := &c.out
	n := 0
	for i := range ds {
		d := &ds[i]
		if int(d.Flow%senders) != s {
			continue
		}
		addr := d.Addr.Addr().As4()
		copy(st.addrs[n].IP, addr[:])
		st.addrs[n].Port = int(d.Addr.Port())
		st.msgs[n].Buffers[0] = d.Buf
		st.msgs[n].OOB = nil
		if d.ECN != 0 && c.ecn.Load() {
			st.msgs[n].OOB = st.tos[d.ECN]
		}
		st.index[n] = i
		n++
	}
	plain := -1 // the message that is tried again without its ECN
	for k := 0; k < n; {
		sent, err := c.packets[s].WriteBatch(st.msgs[k:n], 0)
		switch {
		case sent > 0:
			if k == plain {
				c.giveUpECN(st.msgs[k:n])
			}
			k += sent // what stopped the batch comes again as its first message
		case errors.Is(err, os.ErrClosed):
			return err
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNREFUSED):
			// An unconnected socket gets ECONNREFUSED only for an earlier datagram's ICMP error; it is
			// cleared by being reported.
		case errors.Is(err, unix.EINVAL) && len(st.msgs[k].OOB) > 0:
			// Either the kernel refuses the ECN or the destination: without the ECN it shows which.
			st.msgs[k].OOB = nil
			plain = k
		default:
			ds[st.index[k]].Err = sendError(err)
			k++
		}
	}
	return nil
}

// giveUpECN sends the rest of a batch, and everything from then on, without ECN.
func (c *Conn) giveUpECN(rest []ipv4.Message) {
	if c.ecn.CompareAndSwap(true, false) {
		c.log.Warn("outer ECN switched off: the kernel refuses IP_TOS for a datagram", "feature", "outer-ecn")
	}
	for i := range rest {
		rest[i].OOB = nil
	}
}

func sendError(err error) error {
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return tunnel.ErrSendBufferFull
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("a firewall rule on this host rejects the outer datagram: %w", err)
	}
	return err
}
