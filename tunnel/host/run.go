//go:build linux

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long Run waits after an event before it looks, so that a burst of them is one look.
const settle = 100 * time.Millisecond

// Run puts back what something else removes: the TUN's state, address and routes and the firewall rules when the
// kernel tells of it, and those and forwarding every Resync. Of iptables-legacy's rules the kernel tells nothing. Run
// returns nil when ctx ends, and ErrTUNGone when there is nothing left to look after.
func (s *State) Run(ctx context.Context) error {
	period := s.config.Resync
	if period <= 0 {
		period = DefaultResync
	}
	tick := time.NewTicker(period)
	defer tick.Stop()

	events := make(chan struct{}, 1)
	sock, err := watchSocket(s.config.has6())
	if err != nil {
		s.log.Warn("no events from the kernel: what is removed comes back at the next period", "period", period, "error", err)
	} else {
		var reader sync.WaitGroup
		reader.Go(func() { watch(sock, s.journal.TUN.Index, events) })
		defer reader.Wait()
		defer sock.Close()
	}
	rules := newRulesWatch(s.log)
	defer rules.close()

	look := time.NewTimer(0)
	defer look.Stop()
	repairs := repairs{log: s.log.With("tun", s.config.TUN), period: period}
	for {
		var did []string
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			look.Reset(settle)
			continue
		case <-look.C:
			did, err = s.converge()
		case <-rules.events:
			rules.arm()
			continue
		case <-rules.look.C:
			rules.looked()
			did, err = s.convergeFirewall()
			s.lookForObstacles()
		case <-tick.C:
			if !rules.told() || s.config.hasLegacy() {
				s.lookForObstacles()
			}
			if did, err = s.converge(); err == nil {
				var more []string
				more, err = s.convergeFirewall()
				did = append(did, more...)
			}
		}
		if ctx.Err() != nil {
			return nil // what is missing now was taken away on purpose
		}
		if errors.Is(err, ErrTUNGone) {
			repairs.report(did, nil)
			return err
		}
		repairs.report(did, err)
	}
}

// repairs logs what was put back, and why something could not be, once for each reason.
type repairs struct {
	log    *slog.Logger
	period time.Duration // at which it is tried again
	said   string
}

func (r *repairs) report(did []string, err error) {
	for _, what := range did {
		r.log.Warn("put back what something removed", "what", what)
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != r.said && err != nil {
		r.log.Error("cannot put back what something removed; trying again every period", "period", r.period, "error", err)
	}
	r.said = text
}

func (s *State) convergeFirewall() (did []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.undone {
		return nil, nil
	}
	for _, f := range s.firewalls {
		ok, err := f.intact()
		if err != nil {
			return did, err
		}
		if ok {
			continue
		}
		if err := f.apply(); err != nil {
			return did, err
		}
		did = append(did, s.journal.tools()+" rules")
	}
	return did, nil
}

// watchSocket subscribes to the changes of links, IPv4 addresses and IPv4 routes in this namespace, and of those of
// IPv6 where it matters.
func watchSocket(six bool) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE)
	if six {
		groups |= unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to changes of links, addresses and routes: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// watch tells events of every change that may concern us, until sock is closed.
func watch(sock *os.File, tun int, events chan<- struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := sock.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// The kernel had more to tell than the socket holds: anything may have happened.
		case err != nil:
			return
		case !concerns(buf[:n], tun):
			continue
		}
		select {
		case events <- struct{}{}:
		default:
		}
	}
}

// hasGateway reports whether a route is one of package direct's, which looks after them itself.
func hasGateway(m *syscall.NetlinkMessage) bool {
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type == unix.RTA_GATEWAY })
}

// concerns reports whether one of the messages is about the TUN with this index or about a route of ours
// that went. The fields are those of linux/rtnetlink.h and linux/if_addr.h: the protocol is byte 5 of
// rtmsg, the index is bytes 4 to 7 of both ifinfomsg and ifaddrmsg.
func concerns(b []byte, tun int) bool {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range messages {
		if len(m.Data) < 8 {
			continue
		}
		switch m.Header.Type {
		case unix.RTM_DELROUTE:
			if m.Data[5] == RouteProtocol && !hasGateway(&m) {
				return true
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_DELADDR:
			if binary.NativeEndian.Uint32(m.Data[4:]) == uint32(tun) {
				return true
			}
		}
	}
	return false
}
