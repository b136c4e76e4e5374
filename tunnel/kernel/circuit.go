//go:build linux

package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

// circuit is what the self-test runs in, in a network namespace of its own:
//
//	write ── in 192.0.2.1 ── kernel, which forwards ── out 198.51.100.1 ── read
//	                           │
//	                           ├ UDP sockets
//	                           └ VXLAN device 203.0.113.1
//
// The addresses are those of documentation (RFC 5737); the other ends, .2, are whoever the test pretends to
// be.
type circuit struct {
	ctx      context.Context
	in, out  *tap
	links    *netlink.Handle
	port     int      // of the latest attempt: each has its own, so that nothing of the one before is taken for its
	features Features // that may still be used
	tamper   tamperFunc
}

// tamperFunc gets what a check read, and returns what the check is to see: nil for nothing. Tests play a
// broken kernel with it.
type tamperFunc func(feature, what string, p []byte) []byte

var (
	inAddr    = [4]byte{192, 0, 2, 1}
	inPeer    = [4]byte{192, 0, 2, 2}
	outAddr   = [4]byte{198, 51, 100, 1}
	outPeer   = [4]byte{198, 51, 100, 2}
	vxlanAddr = [4]byte{203, 0, 113, 1}
	vxlanPeer = [4]byte{203, 0, 113, 2}
)

const (
	firstPort    = 20000
	sentinelPort = 19999 // of what is sent behind an attempt, to know that nothing more will come
	sourcePort   = 19998
	vxlanPort    = 4789 // RFC 7348
)

// newCircuit sets the namespace of the calling thread up. Until its devices are up nothing happens in it.
func newCircuit(ctx context.Context, in, out *tap) (*circuit, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	c := &circuit{ctx: ctx, in: in, out: out, links: links, port: firstPort}
	if err := c.setUp(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *circuit) close() { c.links.Close() }

func (c *circuit) setUp() error {
	// IPv6 would announce itself on both devices. It may not be there at all.
	if err := sysctl("ipv6/conf/all/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	// A new namespace may begin with the host's settings, and the stricter of all and the device's holds.
	for _, name := range []string{"all", c.in.name, c.out.name} {
		if err := sysctl("ipv4/conf/"+name+"/rp_filter", "0"); err != nil {
			return err
		}
	}
	if err := c.bringUp("lo", nil); err != nil {
		return err
	}
	if err := c.bringUp(c.in.name, &inAddr); err != nil {
		return err
	}
	return c.bringUp(c.out.name, &outAddr)
}

// sysctl writes a setting of the calling thread's network namespace: /proc/sys/net shows whoever opens it
// their own.
func sysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/net/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (c *circuit) bringUp(name string, addr *[4]byte) error {
	link, err := c.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if addr != nil {
		prefix := &net.IPNet{IP: net.IP(addr[:]), Mask: net.CIDRMask(24, 32)}
		if err := c.links.AddrAdd(link, &netlink.Addr{IPNet: prefix}); err != nil {
			return fmt.Errorf("address %v of %s: %w", prefix, name, err)
		}
	}
	if err := c.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// nextPort begins an attempt.
func (c *circuit) nextPort() int {
	c.port++
	return c.port
}

// grace is how much longer than the sentinel a packet may take.
const grace = 50 * time.Millisecond

// refused is the error for what the kernel did not take. Only those errors that a kernel has for what it cannot
// do are a fault of its; any other is untold.
func refused(op string, err error) error {
	wrapped := fmt.Errorf("%s: %w", op, err)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EOPNOTSUPP) {
		return wrapped
	}
	return untold{wrapped}
}

// untold wraps what kept a check from finding anything out.
type untold struct{ error }

func (u untold) Unwrap() error { return u.error }

// put writes a packet to in.
func (c *circuit) put(p []byte, info gso.Info) error {
	if err := c.in.write(info, p); err != nil {
		return refused("write to the TUN device", err)
	}
	return nil
}

// gathered is what came of an attempt.
type gathered struct {
	packets [][]byte // superpackets cut
	whole   int      // how many packets or messages stood for several
}

// gather reads from out what belongs to the attempt on port, until the sentinel. It expects want packets.
func (c *circuit) gather(k *check, port, want int) (gathered, error) {
	var g gathered
	until := deadline(c.ctx)
	seen := false
	for !seen || len(g.packets) < want {
		info, p, err := c.out.read(c.ctx, until)
		if errors.Is(err, errLate) && seen {
			break // it is lost
		}
		if err != nil {
			return g, untold{err}
		}
		if !regular(p) {
			continue
		}
		switch int(binary.BigEndian.Uint16(p[ipLen+2:])) {
		case sentinelPort:
			if int(binary.BigEndian.Uint16(p[ipLen:])) == port {
				seen, until = true, time.Now().Add(grace)
			}
		case port:
			p = c.seen(k, p)
			if p == nil {
				continue
			}
			if info.Kind != gso.None && info.Size > 0 && regular(p) {
				g.whole++
				g.packets = append(g.packets, cut(p, int(info.Size))...)
				continue
			}
			complete(p, info)
			g.packets = append(g.packets, p)
		}
	}
	return g, nil
}

// gatherDatagrams reads from s until the sentinel, the datagram "end". It expects want datagrams.
func (c *circuit) gatherDatagrams(k *check, s udpSocket, want int) (gathered, error) {
	var g gathered
	until := deadline(c.ctx)
	buf := make([]byte, maxPacket)
	seen := false
	for !seen || len(g.packets) < want {
		p, size, err := s.read(c.ctx, buf, until)
		if errors.Is(err, errLate) && seen {
			break
		}
		if err != nil {
			return g, untold{err}
		}
		if bytes.Equal(p, sentinel) {
			seen, until = true, time.Now().Add(grace)
			continue
		}
		p = c.seen(k, p)
		if p == nil {
			continue
		}
		if size > 0 && len(p) > size {
			g.whole++
			g.packets = append(g.packets, shape{len(p), size}.pieces(p)...)
			continue
		}
		g.packets = append(g.packets, p)
	}
	return g, nil
}

var sentinel = []byte("end")

// seen is p, kept, as tests may have it.
func (c *circuit) seen(k *check, p []byte) []byte {
	p = bytes.Clone(p)
	if c.tamper != nil {
		return c.tamper(k.feature, k.what, p)
	}
	return p
}

func deadline(ctx context.Context) time.Time {
	t, ok := ctx.Deadline()
	if !ok {
		return time.Now().Add(examineTime)
	}
	return t
}

// listen opens a UDP socket with room for a whole superpacket cut up.
func (c *circuit) listen(addr [4]byte, port int, options ...option) (udpSocket, error) {
	s, err := openUDP(endpoint{Addr: addr, Port: port}, options...)
	if err != nil {
		return s, untold{err}
	}
	const room = 1 << 20
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o[0], room) != nil {
			// What the system's limit leaves is nearly always enough.
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o[1], room)
		}
	}
	return s, nil
}
