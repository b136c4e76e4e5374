package underlay

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"muslin/tunnel/netnstest"
)

// namespace is a network namespace of its own.
type namespace struct{ *netnstest.Namespace }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	return &namespace{netnstest.New(t)}
}

// quietLoopback moves the test to a namespace where nobody else's datagrams are lost: the causes of losses are told apart
// by what all sockets of a namespace have lost (see losses).
func quietLoopback(t testing.TB) {
	t.Helper()
	netnstest.Enter(t)
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// open opens an underlay inside.
func (n *namespace) open(t testing.TB, features string, change func(*Config)) (c *Conn) {
	t.Helper()
	cfg := config(t, features, nil)
	change(&cfg)
	n.Do(t, func() (err error) {
		c, err = Open(cfg)
		return err
	})
	t.Cleanup(func() { c.Close() })
	befriend(c, loopback, nearAddr, farAddr, loopback6, nearAddr6, farAddr6)
	return c
}

// link is two hosts and what is between them:
//
//	near 192.0.2.1 ── out0 ══ far0 ── far 192.0.2.2
//	   2001:db8::1                       2001:db8::2, with newLink6
//
// out0 cuts runs of datagrams itself, so that what is on the way is what a network would carry.
type link struct {
	near, far *namespace
}

var (
	nearAddr = netip.MustParseAddr("192.0.2.1")
	farAddr  = netip.MustParseAddr("192.0.2.2")

	nearAddr6 = netip.MustParseAddr("2001:db8::1")
	farAddr6  = netip.MustParseAddr("2001:db8::2")
)

func newLink(t testing.TB) *link {
	t.Helper()
	l := &link{newNamespace(t), newNamespace(t)}
	l.near.Sh(t, fmt.Sprintf(`
		ip link set lo up
		ip link add out0 address 02:00:00:00:00:01 type veth peer name far0 address 02:00:00:00:00:02 netns %d`, l.far.Thread))
	l.far.Sh(t, `
		ip addr add 192.0.2.2/24 dev far0
		ip link set far0 up
		ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev far0 nud permanent`)
	// The far end is up by now, so this one has its carrier, and takes packets, at once.
	l.near.Sh(t, `
		ip addr add 192.0.2.1/24 dev out0
		ip link set out0 up
		ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out0 nud permanent
		ethtool -K out0 tx-udp-segmentation off`)
	return l
}

// newLink6 is a link with addresses of both families.
func newLink6(t testing.TB) *link {
	t.Helper()
	l := newLink(t)
	l.far.Sh(t, `
		ip addr add 2001:db8::2/64 dev far0 nodad
		ip neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev far0 nud permanent`)
	l.near.Sh(t, `
		ip addr add 2001:db8::1/64 dev out0 nodad
		ip neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev out0 nud permanent`)
	l.near.AwaitIPv6(t, nearAddr6)
	l.far.AwaitIPv6(t, farAddr6)
	return l
}

// setMTU changes it on both ends.
func (l *link) setMTU(t testing.TB, mtu int) {
	t.Helper()
	l.near.Sh(t, fmt.Sprintf("ip link set out0 mtu %d", mtu))
	l.far.Sh(t, fmt.Sprintf("ip link set far0 mtu %d", mtu))
}

// pair opens an underlay at each end.
func (l *link) pair(t testing.TB, features, farFeatures string, log *logbook) (near, far *Conn) {
	t.Helper()
	return l.pairOf(t, false, features, farFeatures, log)
}

func (l *link) pairOf(t testing.TB, six bool, features, farFeatures string, log *logbook) (near, far *Conn) {
	t.Helper()
	nearAddr, farAddr := nearAddr, farAddr
	if six {
		nearAddr, farAddr = nearAddr6, farAddr6
	}
	near = l.near.open(t, features, func(cfg *Config) {
		*cfg = config(t, features, log)
		cfg.Local, cfg.Port = nearAddr, 8472
	})
	far = l.far.open(t, farFeatures, func(cfg *Config) { cfg.Local, cfg.Port = farAddr, 8472 })
	return near, far
}
