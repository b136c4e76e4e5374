//go:build linux

package host

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/encap"
)

// lookForMTU is how often WatchMTU looks without having been told of a change.
const lookForMTU = 10 * time.Second

// WatchMTU calls changed, from its own goroutine, with the MTU of the interface iface whenever it is no
// longer current, until ctx ends, which gives nil. An interface that is gone keeps its last MTU until it
// is back.
func WatchMTU(ctx context.Context, iface string, current encap.OuterMTU, log *slog.Logger, changed func(encap.OuterMTU)) error {
	updates := make(chan netlink.LinkUpdate, 16)
	options := netlink.LinkSubscribeOptions{ErrorCallback: func(err error) {
		if ctx.Err() == nil {
			log.Warn("no events from the kernel: a change of the underlay's MTU is noticed later", "iface", iface, "period", lookForMTU, "error", err)
		}
	}}
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), options); err != nil {
		options.ErrorCallback(err)
		updates = nil
	}
	tick := time.NewTicker(lookForMTU)
	defer tick.Stop()
	settled := time.NewTimer(0)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, more := <-updates:
			switch {
			case !more:
				updates = nil
			case u.Header.Type == unix.RTM_NEWLINK && u.Attrs().Name == iface:
				settled.Reset(settle)
			}
			continue
		case <-settled.C:
		case <-tick.C:
		}
		l, err := LinkNamed(iface)
		if err != nil || l == nil {
			continue
		}
		if mtu := encap.OuterMTU(l.Attrs().MTU); mtu != current {
			current = mtu
			changed(mtu)
		}
	}
}

// SetMTU changes the TUN device's MTU, in bytes, from now on: Run puts back this one.
func (s *State) SetMTU(mtu encap.InnerMTU) error {
	if err := s.config.checkMTU(int(mtu)); err != nil {
		return err
	}
	s.mu.Lock()
	s.config.MTU = int(mtu)
	s.mu.Unlock()
	if _, err := s.converge(); err != nil {
		return fmt.Errorf("set the MTU of %q to %d: %w", s.config.TUN, mtu, err)
	}
	return nil
}
