package tun

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestOpenRefused(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d, err := twin.open("muslin0")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Name() != "muslin0" || find(t, "muslin0").Type() != "tuntap" {
				t.Errorf("opened %q", d.Name())
			}
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "peer"}); err != nil {
				t.Fatal(err)
			}
			before := openFiles(t)
			for _, c := range []struct {
				name  string
				taken bool
			}{
				{"muslin0", true},           // a TUN device that is open
				{"other", true},             // a link of another kind
				{"sixteen-bytes-xx", false}, // IFNAMSIZ counts the final zero
			} {
				d, err := twin.open(c.name)
				if err == nil {
					d.Close()
					t.Errorf("%q could be opened", c.name)
					continue
				}
				if errors.Is(err, ErrNameTaken) != c.taken || !strings.Contains(err.Error(), c.name) {
					t.Errorf("%q: error %q, want ErrNameTaken: %v, and the name in it", c.name, err, c.taken)
				}
			}
			if n := openFiles(t); n != before {
				t.Errorf("%d files open after the refusals, before them %d", n, before)
			}
			longest, err := twin.open("fifteen-bytes-x")
			if err != nil {
				t.Fatalf("a name of 15 bytes: %v", err)
			}
			longest.Close()
		})
	}
}

func TestDeletedUnderUs(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			done := make(chan error, 1)
			go func() {
				r := newReading(2)
				_, err := d.Read(r.bufs, r.sizes, offset)
				done <- err
			}()
			if err := netlink.LinkDel(find(t, d.Name())); err != nil {
				t.Fatal(err)
			}
			_, werr := d.Write(behindHeadroom(echo(t, 0)), offset)
			for op, err := range map[string]error{"Read": within(t, "Read", done), "Write": werr} {
				if err == nil || errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "deleted under us") {
					t.Errorf("%s of a deleted device: %v, want an error that says so and is not os.ErrClosed", op, err)
				}
			}
			if err := d.Close(); err != nil {
				t.Errorf("Close of a deleted device: %v", err)
			}
		})
	}
}

func TestClose(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			before := openFiles(t)
			d, err := twin.open("muslin0")
			if err != nil {
				t.Fatal(err)
			}
			bringUp(t, d)
			done := make(chan error, 1)
			go func() {
				r := newReading(2)
				_, err := d.Read(r.bufs, r.sizes, offset)
				done <- err
			}()
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := within(t, "Read during Close", done); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read during Close: %v, want os.ErrClosed", err)
			}
			r := newReading(2)
			if _, err := d.Read(r.bufs, r.sizes, offset); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read after Close: %v, want os.ErrClosed", err)
			}
			if n, err := d.Write(behindHeadroom(echo(t, 0)), offset); n != 0 || !errors.Is(err, os.ErrClosed) {
				t.Errorf("Write after Close = %d, %v, want os.ErrClosed", n, err)
			}
			if err := d.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if link, err := netlink.LinkByName("muslin0"); err == nil {
				t.Errorf("link %v is still there", link.Attrs().Name)
			}
			// Go's netpoller, which Portable waits in, opens descriptors of its own the first time.
			if n := openFiles(t); n != before && twin.drain {
				t.Errorf("%d files open after Close, before Open %d", n, before)
			}
		})
	}
}

func TestFeatures(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			checkFeatures(t, openUp(t, twin.open), twin.drain, twin.napi)
		})
	}
	// Where /sys cannot be used, the device is a plain one and says why.
	t.Run("foreign sys", func(t *testing.T) {
		newNamespaceWithoutSys(t)
		d := openUp(t, twins[0].open)
		checkFeatures(t, d, true, false)
		if n, err := d.Write(behindHeadroom(echo(t, 0)), offset); n != 1 || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
		replies, _ := newReading(1).read(t, d, 1)
		checkReply(t, replies[0], 0)
	})
}

func checkFeatures(t *testing.T, d device, drain, napi bool) {
	t.Helper()
	on := map[string]bool{}
	for _, f := range d.Features() {
		on[f.Name] = f.On
		if f.Reason == "" {
			t.Errorf("feature %s has no reason", f.Name)
		}
		if f.Name == "tun-napi" && napi && !f.On && strings.Contains(f.Reason, "(before ") {
			napi = false // a kernel without it
			t.Logf("no tun-napi: %s", f.Reason)
		}
	}
	if want := map[string]bool{"tun-drain": drain, "tun-napi": napi}; !maps.Equal(on, want) {
		t.Errorf("features %+v, want %v", d.Features(), want)
	}
}
