package tun

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// Every test has a network namespace of its own, with one device in it:
//
//	test ── raw socket ── kernel 10.9.0.1/24 ── muslin0 (TUN) ── device.Read, device.Write ── test
//
// so 10.9.0.2 and the rest of the subnet are whoever the test pretends to be.

// device is what all the twins are.
type device interface {
	tunnel.Device
	Name() string
	Features() []kernel.Feature
	Close() error
}

var twins = []struct {
	name        string
	open        func(string) (device, error)
	drain, napi bool // the features that it has
}{
	{"napi", func(name string) (device, error) { return notNil(Open(name)) }, true, true},
	{"plain", func(name string) (device, error) { return notNil(OpenPlain(name)) }, true, false},
	{"portable", func(name string) (device, error) { return notNil(OpenPortable(name)) }, false, false},
}

// notNil keeps a nil pointer out of the interface.
func notNil[D device](d D, err error) (device, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// newNamespace moves the test's goroutine and its thread into fresh network and mount namespaces, with
// the /sys that belongs to them. The thread dies with the goroutine, and the namespaces with it.
func newNamespace(t testing.TB) {
	t.Helper()
	newNamespaceWithoutSys(t)
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
}

// newNamespaceWithoutSys leaves /sys showing the namespace that the test came from.
func newNamespaceWithoutSys(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("opening a TUN device needs root, and CI is set")
		}
		t.Skip("opening a TUN device needs root")
	}
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	// An interface that comes up says things in IPv6, which no test here is about.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// bringUp gives the device its address and sets it up.
func bringUp(t testing.TB, d device) {
	t.Helper()
	link := find(t, d.Name())
	addr, err := netlink.ParseAddr("10.9.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func find(t testing.TB, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// openUp opens a device that is ready to carry packets.
func openUp(t testing.TB, open func(string) (device, error)) device {
	t.Helper()
	d, err := open("muslin0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	bringUp(t, d)
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

// udpSocket listens on the host's address, with room for that many bytes, and gives up a read after ten
// seconds.
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
