//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

// answersPort is where peers answer.
const answersPort = 7886

// question is a connection to a node's answers, made by hand: this is what others could try.
type question struct {
	from *lab.Node
	bind netip.AddrPort // port 0: another one each time, that takes root
	ttl  int
	to   netip.Addr
}

var askedFrom atomic.Uint32

// ask gets a path, or says why nothing came: a refusal, silence, or a connection that was closed without an answer.
func (q question) ask(path string) (string, error) {
	fd, err := q.connect()
	for errors.Is(err, unix.EINTR) { // by a signal of the Go runtime's
		fd, err = q.connect()
	}
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "question")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(lab.Patience(3 * time.Second)))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
		return "", err
	}
	said, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	head, body, _ := strings.Cut(string(said), "\r\n\r\n")
	if !strings.Contains(head, " 200 OK") {
		return "", errors.New(head + body)
	}
	return body, nil
}

func (q question) connect() (fd int, err error) {
	if q.bind.Port() == 0 {
		q.bind = netip.AddrPortFrom(q.bind.Addr(), uint16(600+askedFrom.Add(1)%300))
	}
	domain, level, ttl := unix.AF_INET, unix.SOL_IP, unix.IP_TTL
	sockaddr := func(a netip.AddrPort) unix.Sockaddr {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	if q.to.Is6() {
		domain, level, ttl = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS
		sockaddr = func(a netip.AddrPort) unix.Sockaddr {
			return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
		}
	}
	fd = -1
	err = q.from.Do(func() (err error) {
		if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		patience := unix.NsecToTimeval(int64(lab.Patience(700 * time.Millisecond)))
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
			unix.SetsockoptInt(fd, level, ttl, q.ttl),
			unix.Bind(fd, sockaddr(q.bind)))
	})
	if err == nil {
		err = unix.Connect(fd, sockaddr(netip.AddrPortFrom(q.to, answersPort)))
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
	}
	return fd, err
}

// Who may ask a daemon, and who may not, with both families. The third host is on the underlay and no node.
//
//	p1a ── cni0 ─ h1 (muslin) ─┐         ┌─ h3
//	p2a ── cni0 ─ h2 (muslin) ─┴── br0 ──┘
func TestPeerAnswers(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	underlay6(t, l)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	startEtcd(t, h1).Config(t, dualConfig)
	flags := []string{"--etcd-endpoints", endpoint(h1)}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 2)
	waitPeers(t, m2, 2)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	n1, n2 := status(t, m1).Node, status(t, m2).Node
	eventuallyPings(t, a.Node, b.Addr)
	base1, base2 := n1.Subnet.Addr(), n2.Subnet.Addr()
	base1v6, base2v6 := netip.MustParsePrefix(n1.Subnet6).Addr(), netip.MustParsePrefix(n2.Subnet6).Addr()
	honest := question{h1.Node, netip.AddrPortFrom(base1, 0), 255, base2}
	honest6 := question{h1.Node, netip.AddrPortFrom(base1v6, 0), 255, base2v6}

	answered := func(t *testing.T) {
		t.Helper()
		for _, q := range []question{honest, honest6} {
			said, err := q.ask("/v1/about")
			if err != nil {
				t.Errorf("%s asked by its peer: %v", q.to, err)
				continue
			}
			var about struct {
				Version  string    `json:"version"`
				PublicIP string    `json:"public_ip"`
				VNI      *uint32   `json:"vni"`
				MTU      int       `json:"mtu"`
				Now      time.Time `json:"now"`
				You      *struct {
					Subnet    string `json:"subnet"`
					PublicIP  string `json:"public_ip"`
					RxPackets uint64 `json:"rx_packets"`
					Way       string `json:"way"`
				} `json:"you"`
			}
			if err := json.Unmarshal([]byte(said), &about); err != nil {
				t.Fatalf("%v in %s", err, said)
			}
			if about.Version == "" || about.PublicIP != h2.Addr.String() || about.VNI == nil || *about.VNI != 1 || about.MTU != dualMTU ||
				time.Since(about.Now).Abs() > lab.Patience(5*time.Second) {
				t.Errorf("about: %s", said)
			}
			if y := about.You; y == nil || !strings.HasPrefix(y.Subnet, q.bind.Addr().String()+"/") || y.RxPackets == 0 || y.Way != "encapsulated" {
				t.Errorf("about who asks: %s", said)
			}
		}
		said, err := honest.ask("/v1/peers")
		if err != nil || !strings.Contains(said, `"subnet":"`+n1.Subnet.String()+`"`) || !strings.Contains(said, n1.Subnet6) {
			t.Errorf("its peers: %s, %v", said, err)
		}
	}
	answered(t)

	// A host of the underlay with a way to the address, and one that says to be the peer.
	runIn(t, h3.Node, "ip", "route", "add", base2.String(), "via", h2.Addr.String())
	runIn(t, h3.Node, "ip", "-6", "route", "add", base2v6.String(), "via", hostAddr6(h2).String())
	runIn(t, h3.Node, "ip", "addr", "add", base1.String()+"/32", "dev", "eth0")
	t.Run("refused", func(t *testing.T) {
		for what, q := range map[string]question{
			"without root":                   {h1.Node, netip.AddrPortFrom(base1, 20000), 255, base2},
			"forwarded":                      {h1.Node, netip.AddrPortFrom(base1, 901), 254, base2},
			"forwarded, IPv6":                {h1.Node, netip.AddrPortFrom(base1v6, 901), 254, base2v6},
			"a peer's pod":                   {a.Node, netip.AddrPortFrom(a.Addr, 902), 255, base2},
			"the node's own pod":             {b.Node, netip.AddrPortFrom(b.Addr, 903), 255, base2},
			"the node itself":                {h2.Node, netip.AddrPortFrom(base2, 904), 255, base2},
			"a peer by its underlay address": {h1.Node, netip.AddrPortFrom(h1.Addr, 905), 255, base2},
			"at the underlay address":        {h1.Node, netip.AddrPortFrom(h1.Addr, 906), 255, h2.Addr},
			"at the underlay address, IPv6":  {h1.Node, netip.AddrPortFrom(hostAddr6(h1), 906), 255, hostAddr6(h2)},
			"from the underlay":              {h3.Node, netip.AddrPortFrom(h3.Addr, 907), 255, base2},
			"from the underlay, IPv6":        {h3.Node, netip.AddrPortFrom(hostAddr6(h3), 907), 255, base2v6},
			"from the underlay, as a peer":   {h3.Node, netip.AddrPortFrom(base1, 908), 255, base2},
		} {
			t.Run(what, func(t *testing.T) {
				t.Parallel()
				said, err := q.ask("/v1/about")
				// A refusal, or a connection that is reset at once, or (EINPROGRESS) nothing at all.
				if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EINPROGRESS) {
					t.Errorf("was told %q, %v", said, err)
				}
				t.Log(err)
			})
		}
	})

	// A successor goes on with the same sockets.
	old := m2.Proc
	m2 = launchMuslin(t, h2, append([]string{"--replace"}, flags...)...)
	expectExit(t, old, 0)
	eventually(t, lab.Patience(10*time.Second), func() error { _, err := honest.ask("/v1/about"); return err })
	answered(t)

	old = m2.Proc
	launchMuslin(t, h2, append([]string{"--replace", "--peer-answers=false"}, flags...)...)
	expectExit(t, old, 0)
	eventually(t, lab.Patience(5*time.Second), func() error {
		if _, err := honest.ask("/v1/about"); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("with --peer-answers=false: %v", err)
		}
		return nil
	})
}
