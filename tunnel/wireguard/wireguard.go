// Package wireguard is an underlay that encrypts: WireGuard's engine (golang.zx2c4.com/wireguard/device) in this process,
// between the VTEP and the network.
//
// The VTEP hands it the inner packets as they are (encap.UDP's framing, which adds nothing) and gets back those that
// peers have proved to have sent. So routing, ICMP, counters and the TUN device are the VTEP's as with every backend,
// and cryptography, sessions and sockets are the engine's: there is nothing of either here. What the room adds is the
// engine's TUN device, which is not one (pipe.go), and its peers, which follow the table (peers.go).
//
// An inner source is checked by the engine, against the prefixes that its peer's key stands for (cryptokey routing);
// an outer source may be any, since a peer is who has the key. The room never sees an encrypted byte.
package wireguard

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/fib"
)

// Overhead is how many bytes an inner packet grows by at most, over IPv4 or IPv6: an IPv6 header of 40 bytes, UDP's 8,
// type and reserved 4, receiver 4, counter 8, and a tag of 16 (WireGuard's paper, section 5.4.6).
const Overhead = 40 + 8 + 4 + 4 + 8 + 16

// Config is what an Underlay needs.
type Config struct {
	Key       PrivateKey
	PSK       lease.PresharedKey // zero: none
	Port      uint16             // to listen on, at every address of the host; of a peer that names none, too
	Keepalive time.Duration      // of each peer; 0: none

	// Inner is netip.Addr.Is4 or Is6 where each address family has a tunnel of its own: which peers of the table, by their
	// subnets, are this one's. nil: all are, and a peer with one key and one address has its subnets of both.
	Inner func(netip.Addr) bool

	MTU    encap.InnerMTU
	Paused bool // at first: see Resume
	Logger *slog.Logger
}

// Underlay implements tunnel.Engine.
type Underlay struct {
	cfg Config
	dev *device.Device

	pipe pipe // between the VTEP and dev

	state sync.Mutex // held to take the engine up or down
	isUp  bool
	owed  bool // it is to come up, and another process has the port
	members

	greet chan struct{} // holds one token when the engine has come up
}

// Open starts the engine, which listens unless Config.Paused. An error that is syscall.EADDRINUSE means the port is
// taken.
func Open(cfg Config) (*Underlay, error) {
	u := &Underlay{cfg: cfg, members: members{port: cfg.Port, inner: cfg.Inner, log: cfg.Logger}, greet: make(chan struct{}, 1)}
	u.pipe.init(cfg.MTU)
	u.dev = device.NewDevice(&u.pipe, conn.NewDefaultBind(), engineLogger(cfg.Logger))
	err := u.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(cfg.Key.secret[:]), cfg.Port))
	if err == nil {
		if cfg.Paused {
			err = u.Pause()
		} else {
			err = u.Resume()
		}
	}
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("start WireGuard on UDP port %d: %w", cfg.Port, err)
	}
	return u, nil
}

// engineLogger has what the engine says of errors logged, a few lines a second at most: some of them strangers can cause.
func engineLogger(log *slog.Logger) *device.Logger {
	limit := rate.NewLimiter(1, 10)
	return &device.Logger{
		Verbosef: func(string, ...any) {},
		Errorf: func(format string, args ...any) {
			if limit.Allow() {
				log.Warn("wireguard: " + fmt.Sprintf(format, args...))
			}
		},
	}
}

// Queues implements tunnel.Underlay.
func (u *Underlay) Queues() []tunnel.UnderlayQueue { return []tunnel.UnderlayQueue{&u.pipe} }

// Drive implements tunnel.Engine.
func (u *Underlay) Drive(w tunnel.Workers) {
	u.pipe.workers = w
	close(u.pipe.driven)
}

// SetPeers implements tunnel.Underlay.
func (u *Underlay) SetPeers(t *fib.Table, use func()) {
	u.follow(t, func(changes []change) {
		var text strings.Builder
		for i := range changes {
			u.describe(&text, &changes[i])
		}
		u.tell(text.String())
	}, use, func(gone []fib.PublicKey) {
		var text strings.Builder
		for _, key := range gone {
			fmt.Fprintf(&text, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
		}
		u.tell(text.String())
	})
}

// describe writes a change as the engine wants it (https://www.wireguard.com/xplatform/).
func (u *Underlay) describe(to *strings.Builder, c *change) {
	fmt.Fprintf(to, "public_key=%s\n", hex.EncodeToString(c.key[:]))
	if !u.cfg.PSK.IsZero() {
		fmt.Fprintf(to, "preshared_key=%s\n", hex.EncodeToString(u.cfg.PSK[:]))
	}
	if c.moved {
		fmt.Fprintf(to, "endpoint=%s\n", c.endpoint)
	}
	fmt.Fprintf(to, "persistent_keepalive_interval=%d\nreplace_allowed_ips=true\n", u.cfg.Keepalive/time.Second)
	for _, s := range c.subnets {
		fmt.Fprintf(to, "allowed_ip=%s\n", s)
	}
}

func (u *Underlay) tell(changes string) {
	if err := u.dev.IpcSet(changes); err != nil {
		u.cfg.Logger.Error("WireGuard's engine does not take a change of the peers", "err", err)
	}
}

// Losses implements tunnel.Underlay. The engine counts none.
func (u *Underlay) Losses() tunnel.Losses { return tunnel.Losses{} }

// SendOverflow implements tunnel.Underlay.
func (u *Underlay) SendOverflow() uint64 { return 0 }

// Pause implements tunnel.Underlay. The engine stops and lets its port and its sessions go: they cannot be handed to
// another process, which makes new ones.
func (u *Underlay) Pause() error {
	u.state.Lock()
	defer u.state.Unlock()
	u.isUp, u.owed = false, false
	u.pipe.pause() // first, so that nothing of a batch is lost in it
	return u.dev.Down()
}

// Resume implements tunnel.Underlay. The engine listens, and makes a session with every peer (Run). Where another process
// has the port, as one that was to succeed this one and hangs, that is an error, and it comes up when the port is free.
func (u *Underlay) Resume() error {
	u.state.Lock()
	defer u.state.Unlock()
	err := u.up()
	u.owed = errors.Is(err, syscall.EADDRINUSE)
	if u.owed {
		time.AfterFunc(upRetry, u.retry)
	}
	return err
}

const upRetry = 100 * time.Millisecond

func (u *Underlay) retry() {
	u.state.Lock()
	defer u.state.Unlock()
	if !u.owed {
		return
	}
	if u.up() == nil {
		u.owed = false
		u.cfg.Logger.Info("WireGuard has its port again", "port", u.cfg.Port)
		return
	}
	time.AfterFunc(upRetry, u.retry)
}

// up says the port again: where it could not be had, the engine has forgotten it.
func (u *Underlay) up() error {
	if u.isUp {
		return nil
	}
	err := u.dev.IpcSet(fmt.Sprintf("listen_port=%d\n", u.cfg.Port))
	if err == nil {
		err = u.dev.Up()
	}
	if err != nil {
		return err
	}
	u.isUp = true
	u.pipe.resume()
	select {
	case u.greet <- struct{}{}:
	default:
	}
	return nil
}

// Close implements tunnel.Underlay.
func (u *Underlay) Close() error {
	u.state.Lock()
	u.owed = false
	u.state.Unlock()
	u.pipe.end() // first, as in Pause
	u.dev.Close()
	return nil
}

// SetMTU says how long an inner packet is at most: the engine pads none beyond that.
func (u *Underlay) SetMTU(mtu encap.InnerMTU) { u.pipe.setMTU(mtu) }

const (
	// greetPerSecond is how many peers are greeted in a second: a handshake keeps a processor busy for some 0.2 ms.
	greetPerSecond = 500

	// greetSecond is how long the node with the greater key waits for the other's greeting. Two that begin a handshake
	// at once spoil it for each other, and try again after 5 s only.
	greetSecond = 100 * time.Millisecond
)

// Run greets the peers whenever the engine has come up, until ctx ends; then it returns nil. A peer that had a session
// with an earlier process would go on with it for 15 s, and nothing that it sends would be understood.
func (u *Underlay) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.greet:
		}
		began := time.Now()
		first, second := u.greetings()
		if u.greetAll(ctx, first) != nil || wait(ctx, greetSecond) != nil {
			return nil
		}
		met, err := u.Sessions()
		if err != nil {
			u.cfg.Logger.Warn("greet the peers", "err", err)
		}
		second = slices.DeleteFunc(second, func(key fib.PublicKey) bool { return met[key.String()].Handshake.After(began) })
		if u.greetAll(ctx, second) != nil {
			return nil
		}
	}
}

// greetings are the peers that this node greets first, and those that are to greet it.
func (u *Underlay) greetings() (first, second []fib.PublicKey) {
	own := u.cfg.Key.Public()
	for _, key := range u.keys() {
		if compareKeys(own, key) < 0 {
			first = append(first, key)
		} else {
			second = append(second, key)
		}
	}
	return first, second
}

func (u *Underlay) greetAll(ctx context.Context, peers []fib.PublicKey) error {
	limit := rate.NewLimiter(greetPerSecond, greetPerSecond/10)
	for _, key := range peers {
		if err := limit.Wait(ctx); err != nil {
			return err
		}
		if p := u.dev.LookupPeer(device.NoisePublicKey(key)); p != nil {
			p.SendKeepalive()
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

var _ tunnel.Engine = (*Underlay)(nil)
