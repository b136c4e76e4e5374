package tun

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"muslin/tunnel/kernel"
)

// sendNumbered sends each of the flows a packet with each of the numbers, for collect.
func sendNumbered(t *testing.T, fd, flows int, from, to uint32) {
	t.Helper()
	for number := from; number < to; number++ {
		for flow := range uint16(flows) {
			send(t, fd, oneUDP(0).with(func(s *spec) {
				s.from, s.to, s.sport, s.payload = "9.1", "9.7", flow, binary.BigEndian.AppendUint32(nil, number)
			}).build(t, true))
		}
	}
}

func linkThere(t *testing.T) bool {
	t.Helper()
	_, err := netlink.LinkByName("muslin0")
	if missing := (netlink.LinkNotFoundError{}); err != nil && !errors.As(err, &missing) {
		t.Fatal(err)
	}
	return err == nil
}

// files gives the device's descriptors until the test ends.
func files(t *testing.T, d device) []*os.File {
	t.Helper()
	all, err := d.Files()
	must(t, err)
	t.Cleanup(func() { closeAll(all) })
	return all
}

// A device goes from hand to hand with all that waits in its queues, and every flow stays in order.
func TestAdopt(t *testing.T) {
	const flows, rounds = 8, 10
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		old := openUpQueues(t, w, queues, nil)
		index := find(t, "muslin0").Attrs().Index
		fd := rawSocket(t)
		done := waitInRead(w, old)
		must(t, old.Pause())
		for range queues {
			if err := within(t, "Read during Pause", done); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read during Pause: %v, want os.ErrDeadlineExceeded", err)
			}
		}
		sendNumbered(t, fd, flows, 0, rounds)
		for i, q := range old.Queues() {
			if _, err := newReading(w, 2, vxlan).once(t, q); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("queue %d: Read of a paused device in which packets wait: %v, want os.ErrDeadlineExceeded", i, err)
			}
		}
		given := files(t, old)
		d, err := w.openWith(Config{Name: "muslin0", Queues: queues, Adopt: given})
		must(t, err)
		defer d.Close()
		checkFeatures(t, d, w, queues)
		old.Keep(true)
		must(t, old.Close())
		closeAll(given)
		sendNumbered(t, fd, flows, rounds, 2*rounds)
		if find(t, "muslin0").Attrs().Index != index {
			t.Error("the link is another one")
		}
		collect(t, w, d, 2*flows*rounds)
		if linkThere(t) {
			t.Error("the link is there after its last descriptor, though it was not persistent")
		}
	})
}

// A device that was not taken over in the end goes on.
func TestAdoptedAndGivenUp(t *testing.T) {
	const flows, rounds = 8, 10
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		old := openUpQueues(t, w, queues, nil)
		must(t, old.Persist())
		fd := rawSocket(t)
		must(t, old.Pause())
		given := files(t, old)
		d, err := w.openWith(Config{Name: "muslin0", Queues: queues, Adopt: given})
		must(t, err)
		sendNumbered(t, fd, flows, 0, rounds)
		must(t, d.Close())
		closeAll(given)
		must(t, old.Resume())
		collect(t, w, old, flows*rounds) // and closes it
		if linkThere(t) {
			t.Error("the link is there after Close")
		}
	})
}

// A persistent device stays where it is told to, and takes a new process as if nothing had been.
func TestPersist(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		killed := openUpQueues(t, w, queues, nil)
		index := find(t, "muslin0").Attrs().Index
		must(t, killed.Persist())
		killed.Keep(true)
		must(t, killed.Close())
		for range 2 {
			d, err := w.openWith(Config{Name: "muslin0", Queues: queues, Reuse: true})
			must(t, err)
			if find(t, "muslin0").Attrs().Index != index {
				t.Fatal("the link is another one")
			}
			checkFeatures(t, d, w, queues)
			sendNumbered(t, rawSocket(t), 4, 0, 3)
			d.Keep(true)
			collect(t, w, d, 4*3) // and closes it
		}
		d, err := w.openWith(Config{Name: "muslin0", Queues: queues, Reuse: true})
		must(t, err)
		must(t, d.Close())
		if linkThere(t) {
			t.Error("the link is there after Close")
		}
	})
}

func TestPersistentDeviceDeletedUnderUs(t *testing.T) {
	each(t, func(t *testing.T, w twin, queues int) {
		newNamespace(t)
		d := openUpQueues(t, w, queues, nil)
		must(t, d.Persist())
		must(t, netlink.LinkDel(find(t, "muslin0")))
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// What the device's mode does not allow is off; what the mode says and the features do not is refused, and
// then nothing has happened.
func TestAdoptInAnotherMode(t *testing.T) {
	for _, c := range []struct {
		name     string
		made     twin
		wanted   twin
		without  []string // features that are off for the device's sake; nil: refused
		queues   int      // wanted
		reusable bool
	}{
		{"virtio headers are off now", full, plain, nil, 1, true},
		{"virtio headers were off", plain, full, []string{kernel.TUNVnet, kernel.TUNTSO, kernel.TUNUSO, kernel.TUNTCPGRO, kernel.TUNUDPGRO, kernel.TUNNAPI}, 1, true},
		{"NAPI is off now", twin{"", "-tun-vnet"}, plain, nil, 1, true},
		{"one packet a call now", full, twin{"", "none"}, nil, 1, true},
		{"more queues now", full, full, nil, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			old, err := c.made.openQueues("muslin0", 1, nil)
			must(t, err)
			defer old.Close()
			must(t, old.Persist())
			before := openFiles(t)
			given := files(t, old)
			d, err := c.wanted.openWith(Config{Name: "muslin0", Queues: c.queues, Adopt: given})
			switch {
			case c.without == nil && (!errors.Is(err, ErrOtherMode) || !strings.Contains(err.Error(), "muslin0")):
				t.Errorf("error %v, want ErrOtherMode and the device's name", err)
			case c.without != nil:
				must(t, err)
				for _, name := range c.without {
					if f := featureOf(t, d, name); f.On || f.Reason == "" {
						t.Errorf("feature %+v, want it off with a reason", f)
					}
				}
				must(t, d.Close())
			}
			closeAll(given)
			if n := openFiles(t); n != before && c.wanted.on(kernel.TUNDrain) {
				t.Errorf("%d files open, before it %d", n, before)
			}
			// A device that nobody holds can be had in any mode but with another kind of queue.
			old.Keep(true)
			must(t, old.Close())
			d, err = c.wanted.openWith(Config{Name: "muslin0", Queues: c.queues, Reuse: true})
			if c.reusable {
				must(t, err)
				checkFeatures(t, d, c.wanted, c.queues)
				must(t, d.Close())
			} else if !errors.Is(err, ErrOtherMode) || !linkThere(t) {
				t.Errorf("reused: error %v, want ErrOtherMode and the link still there", err)
			}
		})
	}
}

func TestAdoptForeignDescriptor(t *testing.T) {
	newNamespace(t)
	other := openOther(t, full)
	unattached, err := os.OpenFile(clonePath, os.O_RDWR, 0)
	must(t, err)
	defer unattached.Close()
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	for name, given := range map[string][]*os.File{
		"of another device": files(t, other),
		"no TUN":            {null},
		"without a device":  {unattached},
	} {
		before := openFiles(t)
		for _, w := range []twin{full, {"", "none"}} {
			if d, err := w.openWith(Config{Name: "muslin0", Queues: 1, Adopt: given}); err == nil {
				d.Close()
				t.Errorf("%s: a descriptor was adopted", name)
			} else if !strings.Contains(err.Error(), "muslin0") {
				t.Errorf("%s: %q does not name the device", name, err)
			}
		}
		if n := openFiles(t); n != before {
			t.Errorf("%s: %d files open, before it %d", name, n, before)
		}
	}
}
