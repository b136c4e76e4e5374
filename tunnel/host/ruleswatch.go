//go:build linux

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// How often Run looks at the firewall for events, in the long run and at once: a host's rules may be rewritten all the
// time, and a look with iptables starts four processes; and what rewrites them now does so a few times.
const (
	rulesPause = time.Second
	rulesBurst = 5
)

// rulesWatch says when to look at the firewall: at the start, and after somebody changed nftables rules, iptables over
// nftables included.
type rulesWatch struct {
	events chan struct{}
	look   *time.Timer

	sock   *os.File // nil: the kernel does not tell
	reader sync.WaitGroup
	armed  bool
	limit  *rate.Limiter
}

func newRulesWatch(log *slog.Logger) *rulesWatch {
	w := &rulesWatch{events: make(chan struct{}, 1), look: time.NewTimer(0), armed: true, limit: rate.NewLimiter(rate.Every(rulesPause), rulesBurst)}
	sock, err := rulesSocket()
	if err != nil {
		log.Info("no events of nftables: firewall rules that are removed come back at the next period", "error", err)
		return w
	}
	w.sock = sock
	w.reader.Go(w.read)
	return w
}

func (w *rulesWatch) close() {
	w.look.Stop()
	if w.sock != nil {
		w.sock.Close()
	}
	w.reader.Wait()
}

// told reports whether changes are told of.
func (w *rulesWatch) told() bool { return w.sock != nil }

// arm has a look follow soon.
func (w *rulesWatch) arm() {
	if !w.armed {
		w.armed = true
		w.look.Reset(max(settle, w.limit.Reserve().Delay()))
	}
}

func (w *rulesWatch) looked() { w.armed = false }

// rulesSocket subscribes to the changes of nftables in this namespace.
func rulesSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to changes of nftables: %w", err)
	}
	return os.NewFile(uintptr(fd), "netfilter"), nil
}

// read tells of every change, whatever it is, until the socket is closed. Our own are among them: the look that follows
// finds everything in place.
func (w *rulesWatch) read() {
	buf := make([]byte, 64<<10)
	for {
		// ENOBUFS: there was more to tell than the socket holds.
		if _, err := w.sock.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}
