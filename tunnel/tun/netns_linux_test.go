package tun

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
	"muslin/tunnel/netnstest"
)

// Every test has a network namespace of its own, with one device in it, or two that the kernel forwards
// between:
//
//	test ── muslin0 (TUN) ── kernel 10.9.0.1/24 and fd09::1/64, 10.8.0.1/24 and fd08::1/64 ── other0 (TUN) ── test
//
// so 10.9.0.2, 10.8.0.2 and the rest of the subnets are whoever the test pretends to be. muslin0 is what is
// tested.

// device is what all the twins are.
type device interface {
	tunnel.Device
	Name() string
	Features() []kernel.Feature
	Files() ([]*os.File, error)
	Persist() error
	Keep(bool)
}

// twin is a choice of features.
type twin struct{ name, features string }

// twins must all carry the same packets.
var twins = []twin{
	full,
	{"no USO", "-tun-uso"},
	{"no TSO", "-tun-tso"},
	{"no TCP joins, NAPI", "-tun-tcp-gro"},
	{"no TCP joins", "-tun-tcp-gro,-tun-napi"},
	{"no UDP joins", "-tun-udp-gro"},
	{"no vnet, NAPI", "-tun-vnet"},
	plain,
	{"portable", "none"},
}

var (
	full  = twin{"full", "auto"}
	plain = twin{"plain", "-tun-vnet,-tun-napi"}
)

// on reports whether the twin may use a feature.
func (w twin) on(name string) bool {
	f, err := kernel.ParseFeatures(w.features)
	if err != nil {
		panic(err)
	}
	return f.On(name)
}

// napi reports whether the twin is polled in a thread.
func (w twin) napi() bool { return w.on(kernel.TUNNAPI) && !w.on(kernel.TUNTCPGRO) }

// header is how many bytes stand in front of a packet on the descriptor.
func (w twin) header() int {
	if w.on(kernel.TUNVnet) {
		return 10
	}
	return 0
}

func (w twin) open(name string) (device, error) { return w.openQueues(name, 1, nil) }

func (w twin) openQueues(name string, queues int, log *logbook) (device, error) {
	cfg := Config{Name: name, Queues: queues}
	if log != nil {
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	return w.openWith(cfg)
}

// openWith opens what cfg says, with the twin's features.
func (w twin) openWith(cfg Config) (device, error) {
	f, err := kernel.ParseFeatures(w.features)
	if err != nil {
		return nil, err
	}
	cfg.Features = f
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if w.on(kernel.TUNDrain) {
		return notNil(Open(cfg))
	}
	return notNil(OpenPortable(cfg))
}

// notNil keeps a nil pointer out of the interface.
func notNil[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// logbook keeps what was logged, a record a line.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// check wants one warning for each of the features, in this order.
func (l *logbook) check(t *testing.T, features ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) != len(features) {
		t.Fatalf("%d log lines, want %d: %q", len(l.lines), len(features), l.lines)
	}
	for i, f := range features {
		if !strings.Contains(l.lines[i], "level=WARN") || !strings.Contains(l.lines[i], "feature="+f+" ") {
			t.Errorf("log line %q, want a warning of feature %s", l.lines[i], f)
		}
	}
}

// newNamespace moves the test's goroutine and its thread into fresh network and mount namespaces, with
// the /sys that belongs to them. The thread dies with the goroutine, and the namespaces with it.
func newNamespace(t testing.TB) {
	t.Helper()
	newNamespaceWithoutSys(t)
	if err := mountSys(); err != nil {
		t.Fatal(err)
	}
}

func mountSys() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount("sysfs", "/sys", "sysfs", 0, "")
}

// newNamespaceWithoutSys leaves /sys showing the namespace that the test came from.
func newNamespaceWithoutSys(t testing.TB) {
	t.Helper()
	netnstest.RequireRoot(t)
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"ipv4/ip_forward":          "1",
		"ipv6/conf/all/forwarding": "1",
		// An interface that comes up says things in IPv6, which few tests here are about, and as little
		// as possible in those.
		"ipv6/conf/default/disable_ipv6":         "1",
		"ipv6/conf/default/accept_dad":           "0",
		"ipv6/conf/default/router_solicitations": "0",
		"ipv6/conf/default/addr_gen_mode":        "1", // no link-local address
	} {
		must(t, os.WriteFile("/proc/sys/net/"+key, []byte(value), 0))
	}
}

// newDualNamespace is newNamespace with IPv6 on the devices. What they say is in every capture.
func newDualNamespace(t testing.TB) {
	t.Helper()
	newNamespace(t)
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("0"), 0))
}

// bringUp gives the device its addresses, 10.net.0.1 and fd0net::1, and sets it up.
func bringUp(t testing.TB, d device, net int) {
	t.Helper()
	link := find(t, d.Name())
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + d.Name() + "/disable_ipv6")
	must(t, err)
	addresses := []string{fmt.Sprintf("10.%d.0.1/24", net)}
	if off[0] == '0' {
		addresses = append(addresses, fmt.Sprintf("fd0%d::1/64", net))
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		must(t, netlink.AddrReplace(link, addr))
	}
	must(t, netlink.LinkSetUp(link))
}

func find(t testing.TB, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// openUp opens muslin0 ready to carry packets.
func openUp(t testing.TB, w twin) device {
	t.Helper()
	return openUpQueues(t, w, 1, nil)
}

func openUpQueues(t testing.TB, w twin, queues int, log *logbook) device {
	t.Helper()
	d, err := w.openQueues("muslin0", queues, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	bringUp(t, d, 9)
	return d
}

// openOther opens other0, ready as well.
func openOther(t testing.TB, w twin) device {
	t.Helper()
	d, err := w.open("other0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	bringUp(t, d, 8)
	return d
}

// rawSocket sends whole IPv4 packets; the kernel routes them by their destination.
func rawSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// udpSocket is the host's, with room for that many bytes; it gives up a read after ten seconds.
func udpSocket(t testing.TB, port, room int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 0, 1}, Port: port}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// receive takes a datagram. The runtime's signals interrupt a read that has a time limit (signal(7)).
func receive(fd int, buf, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(fd, buf, oob, 0)
		if err != unix.EINTR {
			return n, oobn, err
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	n, _, err := receive(fd, buf, nil)
	return n, err
}
