//go:build linux

package host

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"muslin/encap"
)

func TestWatchMTU(t *testing.T) {
	newNamespace(t)
	veth := func() netlink.Link {
		t.Helper()
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "peer0"}
		if err := netlink.LinkAdd(v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	seen := make(chan encap.OuterMTU, 8)
	ctx, cancel := context.WithCancel(t.Context())
	// The namespace is this thread's, so WatchMTU stays on it and the changes come from another.
	steps := make(chan error, 1)
	eth0 := veth()
	handle, err := netlink.NewHandle() // in this namespace, whatever thread uses it
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	next := func(want encap.OuterMTU) bool {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("told of MTU %d, want %d", got, want)
			}
			return true
		case <-time.After(20 * time.Second):
			t.Errorf("not told of MTU %d", want)
			return false
		}
	}
	go func() {
		defer cancel()
		steps <- func() error {
			for _, mtu := range []int{1400, 9000} {
				if err := handle.LinkSetMTU(eth0, mtu); err != nil || !next(encap.OuterMTU(mtu)) {
					return err
				}
			}
			// Gone and back with another MTU.
			if err := handle.LinkDel(eth0); err != nil {
				return err
			}
			back := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1300}, PeerName: "peer0"}
			if err := handle.LinkAdd(back); err != nil || !next(1300) {
				return err
			}
			return nil
		}()
	}()
	if err := WatchMTU(ctx, "eth0", 1500, slog.Default(), func(mtu encap.OuterMTU) { seen <- mtu }); err != nil {
		t.Error(err)
	}
	if err := <-steps; err != nil {
		t.Error(err)
	}
	if len(seen) > 0 {
		t.Errorf("told of MTU %d as well", <-seen)
	}
}
