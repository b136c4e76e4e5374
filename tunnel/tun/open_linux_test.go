package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"muslin/tunnel/kernel"
)

// counts are the numbers of queues to try a twin with.
func (w twin) counts() []int {
	if w.on(kernel.MultiQueue) {
		return []int{1, 3}
	}
	return []int{1}
}

// each runs f as a subtest for every twin, and every number of queues.
func each(t *testing.T, f func(t *testing.T, w twin, queues int)) {
	for _, w := range twins {
		for _, queues := range w.counts() {
			t.Run(fmt.Sprintf("%s, %d queues", w.name, queues), func(t *testing.T) { f(t, w, queues) })
		}
	}
}

func TestOpenRefused(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		d, err := w.openQueues("muslin0", queues, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.Name() != "muslin0" || find(t, "muslin0").Type() != "tuntap" {
			t.Errorf("opened %q", d.Name())
		}
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "peer"}))
		before := openFiles(t)
		for _, c := range []struct {
			name  string
			taken bool
		}{
			{"muslin0", true},           // a TUN device that is open
			{"other", true},             // a link of another kind
			{"sixteen-bytes-xx", false}, // IFNAMSIZ counts the final zero
		} {
			for _, queues := range w.counts() {
				d, err := w.openQueues(c.name, queues, nil)
				if err == nil {
					d.Close()
					t.Errorf("%q could be opened with %d queues", c.name, queues)
					continue
				}
				if errors.Is(err, ErrNameTaken) != c.taken || !strings.Contains(err.Error(), c.name) {
					t.Errorf("%q with %d queues: error %q, want ErrNameTaken: %v, and the name in it", c.name, queues, err, c.taken)
				}
			}
		}
		if n := openFiles(t); n != before {
			t.Errorf("%d files open after the refusals, before them %d", n, before)
		}
		longest, err := w.openQueues("fifteen-bytes-x", queues, nil)
		if err != nil {
			t.Fatalf("a name of 15 bytes: %v", err)
		}
		longest.Close()
	})
}

func TestDeletedUnderUs(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		d := openUpQueues(t, w, queues, nil)
		done := waitInRead(w, d)
		must(t, netlink.LinkDel(find(t, d.Name())))
		checkDeleted := func(op string, err error) {
			t.Helper()
			if err == nil || isClosed(err) || !strings.Contains(err.Error(), "deleted under us") {
				t.Errorf("%s of a deleted device: %v, want an error that says so and is not os.ErrClosed", op, err)
			}
		}
		for range queues {
			checkDeleted("Read", within(t, "Read", done))
		}
		for _, q := range d.Queues() {
			_, err := q.Write(runs(echo(t, 0)))
			checkDeleted("Write", err)
			n, err := q.Write(append(runs(echo(t, 0)), oneTCP(3000).run(t, 1000)))
			checkDeleted("Write of a superpacket", err)
			if n != 0 {
				t.Errorf("Write took %d packets", n)
			}
			tcp, udp := q.Joins()
			if tcp != w.on(kernel.TUNTCPGRO) || udp != w.on(kernel.TUNUDPGRO) {
				t.Errorf("Joins = %v, %v", tcp, udp)
			}
			if err := q.Reply(append(make([]byte, 10), echo(t, 0)...), 10); err == nil || isClosed(err) {
				t.Errorf("Reply: %v", err)
			}
		}
		if err := d.Close(); err != nil {
			t.Errorf("Close of a deleted device: %v", err)
		}
	})
}

// waitInRead reads from every queue and gives the errors.
func waitInRead(w twin, d device) <-chan error {
	queues := d.Queues()
	done := make(chan error, len(queues))
	for _, q := range queues {
		go func() {
			r := newReading(w, 2, vxlan)
			_, err := q.Read(r.slab, r.ps, vxlan)
			done <- err
		}()
	}
	return done
}

func TestClose(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		before := openFiles(t)
		d := openUpQueues(t, w, queues, nil)
		if n := len(d.Queues()); n != queues {
			t.Errorf("%d queues, want %d", n, queues)
		}
		done := waitInRead(w, d)
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for range queues {
			if err := within(t, "Read during Close", done); !isClosed(err) {
				t.Errorf("Read during Close: %v, want os.ErrClosed", err)
			}
		}
		for _, q := range d.Queues() {
			if _, err := newReading(w, 2, vxlan).once(t, q); !isClosed(err) {
				t.Errorf("Read after Close: %v, want os.ErrClosed", err)
			}
			if n, err := q.Write(append(runs(echo(t, 0)), oneTCP(3000).run(t, 1000))); n != 0 || !isClosed(err) {
				t.Errorf("Write after Close = %d, %v, want os.ErrClosed", n, err)
			}
			if err := q.Reply(append(make([]byte, 10), echo(t, 0)...), 10); !isClosed(err) {
				t.Errorf("Reply after Close: %v, want os.ErrClosed", err)
			}
		}
		if err := d.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if n := d.Overflow(); n != 0 {
			t.Errorf("Overflow after Close = %d", n)
		}
		if link, err := netlink.LinkByName("muslin0"); err == nil {
			t.Errorf("link %v is still there", link.Attrs().Name)
		}
		// Go's netpoller, which Portable waits in, opens descriptors of its own the first time.
		if n := openFiles(t); n != before && w.on(kernel.TUNDrain) {
			t.Errorf("%d files open after Close, before Open %d", n, before)
		}
	})
}

func TestFeatures(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		checkFeatures(t, openUpQueues(t, w, queues, nil), w, queues)
	})
	// Where /sys cannot be used, the device goes without NAPI and says why.
	t.Run("foreign sys", func(t *testing.T) {
		newNamespaceWithoutSys(t)
		w := twin{"no vnet, NAPI", "-tun-vnet"}
		d := openUp(t, w)
		checkFeatures(t, d, plain, 1)
		write(t, d, runs(echo(t, 0))...)
		replies, _ := newReading(w, 1, vxlan).read(t, d, 1)
		checkReply(t, replies[0].bytes, 0)
	})
}

// checkFeatures wants those of w, as they were at the start.
func checkFeatures(t *testing.T, d device, w twin, queues int) {
	t.Helper()
	want := []string{kernel.TUNDrain, kernel.MultiQueue, kernel.TUNVnet, kernel.TUNTSO, kernel.TUNUSO, kernel.TUNTCPGRO, kernel.TUNUDPGRO, kernel.TUNNAPI}
	for i, f := range d.Features() {
		if i >= len(want) || f.Name != want[i] {
			t.Fatalf("features %+v, want %v", d.Features(), want)
		}
		on := w.on(f.Name)
		switch f.Name {
		case kernel.MultiQueue:
			on = queues > 1
		case kernel.TUNNAPI:
			on = w.napi()
			if on && !f.On && strings.Contains(f.Reason, "(before ") {
				t.Logf("no tun-napi: %s", f.Reason) // a kernel without it
				continue
			}
		}
		if f.On != on || f.Reason == "" {
			t.Errorf("feature %+v, want it on: %v", f, on)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}
