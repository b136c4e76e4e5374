package underlay

import (
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// A link that takes 1 Mbit/s and queues a tenth of a second of it:
//
//	Conn 192.0.2.1 ── out0 (tbf) ══ far0
//
// Most of what is sent at once is dropped by the queue, after the socket was told that it was sent.
func TestSendOverflow(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("a network namespace needs root, and CI is set")
		}
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // for good: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	script := `ip link add out0 type veth peer name far0 && ip addr add 192.0.2.1/24 dev out0 &&
		ip link set far0 up && ip link set out0 up && ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out0 nud permanent &&
		tc qdisc add dev out0 root tbf rate 1mbit burst 4kb latency 100ms`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, err := Open(Config{Local: netip.MustParseAddr("192.0.2.1"), Port: 8472, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := c.SendOverflow(); n != 0 {
		t.Fatalf("overflow %d at first", n)
	}
	const batches = 10
	failed := uint64(0)
	ds := make([]tunnel.Datagram, tunnel.BatchSize)
	for range batches {
		for i := range ds {
			ds[i] = tunnel.Datagram{Buf: make([]byte, 1000), Addr: netip.MustParseAddrPort("192.0.2.2:8472")}
		}
		if err := c.Send(ds); err != nil {
			t.Fatal(err)
		}
		for i := range ds {
			if ds[i].Err != nil {
				failed++
			}
		}
	}
	// 640 KB into a queue of 12.5 KB and a bucket of 4 KB.
	const sent = batches * tunnel.BatchSize
	if lost := c.SendOverflow() + failed; lost < sent*9/10 || lost > sent {
		t.Errorf("%d of %d datagrams are counted as dropped, want most of them", lost, sent)
	}
}
