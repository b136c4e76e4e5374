package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/wireguard"
)

// What is different with the wireguard backend. The rest is as with udp: inner packets as they are, to the peer's
// PublicIP; only that the underlay between encrypts them.

// encrypts reports whether it is the wireguard backend.
func (n *node) encrypts() bool { return n.backend == lease.BackendWireGuard }

// keyName is the file in the state directory, unless --wireguard-key-file names another.
const keyName = "wireguard-key"

// keyFile is where this node's private key is.
func (o *options) keyFile() string {
	switch {
	case o.flags.keyFile != "":
		return o.flags.keyFile
	case os.Getenv("WIREGUARD_KEY_FILE") != "": // flannel's only way to say so
		return os.Getenv("WIREGUARD_KEY_FILE")
	}
	return filepath.Join(o.flags.stateDir, keyName)
}

// newEncrypted is the part of newNode. With a peers file the key has to be the one that the peers' files have.
func (d *daemon) newEncrypted(src *source, n *node) error {
	path := d.opts.keyFile()
	key, exposed, err := wireguard.LoadKey(path)
	if err != nil {
		return err
	}
	if exposed {
		d.log.Warn("others than its owner may read the WireGuard key: chmod 0400 the file", "file", path)
	}
	if src.static != nil {
		theirs := src.static.Own().Attrs.Key
		if n.six {
			theirs = src.static.Own().Attrs.Key6
		}
		if theirs != key.Public() {
			return fmt.Errorf("peers file: our lease has the WireGuard key %s, and the key in %s is %s: give the file of the right one with --wireguard-key-file", theirs, path, key.Public())
		}
	}
	n.key, n.wg, n.framing = key, src.config.Backend, encap.UDP{Inner: n.family()}
	if n.six && !n.wg.OneTunnel() {
		n.port = n.wg.PortV6
	}
	return nil
}

// oneTunnel reports whether one WireGuard device carries both families.
func (n *node) oneTunnel() bool { return n.second != nil && n.wg.OneTunnel() }

// inner says which peers of the table are those of the node's tunnel: all of them where there is but one.
func (n *node) inner() func(netip.Addr) bool {
	switch {
	case n.wg.OneTunnel():
		return nil
	case n.six:
		return netip.Addr.Is6
	}
	return netip.Addr.Is4
}

// sourceCheck is how far the VTEP checks a sender. With wireguard the engine does, and more strictly: who has not the key
// of the peer whose subnet holds the inner source is not heard, and who has it may send from anywhere.
func (n *node) sourceCheck(wanted tunnel.SourceCheck) tunnel.SourceCheck {
	if n.encrypts() {
		return tunnel.SourceCheckOff
	}
	return wanted
}

// openEncrypted opens the underlay. With another daemon in our place it waits for its port.
func (d *daemon) openEncrypted(node *node) (*wireguard.Underlay, error) {
	return wireguard.Open(wireguard.Config{
		Key: node.key, PSK: node.wg.PSK, Port: node.port, Keepalive: node.wg.Keepalive, MTU: node.mtu, Inner: node.inner(),
		Paused: d.place.from != nil, Logger: d.log,
	})
}

// Values of --wireguard.
const (
	wireguardAuto      = "auto"      // the kernel's, where it has one
	wireguardKernel    = "kernel"    // the kernel's, or none
	wireguardUserspace = "userspace" // the engine in this process
)

// kernelWireGuard is a WireGuard device of the kernel's. It implements carrier.
type kernelWireGuard struct {
	absent
	*wireguard.Kernel
	device string
	peers  atomic.Pointer[fib.Table]
	waits  atomic.Bool // the device is another daemon's still
}

// openKernelWireGuard makes the device, or takes over the one that is there; nil: the engine in this process is to do
// it. found says that a killed daemon's device is there.
func (d *daemon) openKernelWireGuard(node *node, found bool) (part, error) {
	wanted := d.opts.flags.wireguard
	switch {
	case wanted == wireguardUserspace:
		return nil, nil
	case d.opts.flags.clampMSS:
		return nil, errors.New("--clamp-mss: with the kernel's WireGuard this process sees no packet: leave the flag out, or give --wireguard userspace")
	}
	name := node.tun
	if len(d.place.of(node).tun) > 0 && wanted == wireguardAuto {
		return nil, nil // the daemon whose place this is does it itself
	}
	if found && host.TypeOf(name) != host.TypeWireGuard {
		// A TUN device, of a daemon that did it itself.
		switch has, err := wireguard.KernelHas(); {
		case err != nil:
			return nil, err
		case !has && wanted == wireguardAuto:
			return nil, nil
		}
		if err := host.DeleteLeftover(name); err != nil {
			return nil, fmt.Errorf("delete the TUN device %q: %w; run `muslin cleanup`", name, err)
		}
	}
	k, err := wireguard.OpenKernel(wireguard.KernelConfig{
		Name: name, Alias: host.Mark(node.stateDir), Key: node.key, PSK: node.wg.PSK, Port: node.port, Keepalive: node.wg.Keepalive, MTU: int(node.mtu), Inner: node.inner(),
		Adopt: d.place.from != nil, Logger: d.log,
	})
	switch {
	case err == nil:
		c := &kernelWireGuard{Kernel: k, device: name}
		c.waits.Store(d.place.from != nil)
		return c, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, host.ExplainBind(netip.AddrPortFrom(node.iface.Addr, node.port), err)
	case !errors.Is(err, wireguard.ErrNoKernel):
		return nil, err
	case wanted == wireguardKernel:
		return nil, fmt.Errorf("--wireguard=kernel: %w: load or install its module (wireguard, since Linux 5.6), or leave the flag out to have muslin do it", err)
	}
	return nil, nil
}

func (k *kernelWireGuard) name() string { return k.device }

func (k *kernelWireGuard) connect(_ *daemon, _ *node, _ netip.Prefix, peers *fib.Table) error {
	k.setTable(peers)
	return nil
}

func (k *kernelWireGuard) setTable(t *fib.Table) {
	if !k.waits.Load() {
		k.SetPeers(t)
	}
	k.peers.Store(t)
}

// resume makes the peers ours. Nothing was paused: packets go on meanwhile.
func (k *kernelWireGuard) resume() error {
	if k.waits.Swap(false) {
		k.SetPeers(k.peers.Load())
	}
	return nil
}

// restore has the peers be ours again, after another process has changed them.
func (k *kernelWireGuard) restore() error {
	k.Renew(k.peers.Load())
	return nil
}

func (k *kernelWireGuard) table() *fib.Table { return k.peers.Load() }

func (k *kernelWireGuard) keep(stay bool) { k.Keep(stay) }

func (k *kernelWireGuard) features() []kernel.Feature {
	return []kernel.Feature{{Name: "kernel-wireguard", On: true, Reason: "the kernel's WireGuard carries the packets"}}
}

func (k *kernelWireGuard) sessions() (map[string]wireguard.Session, error) { return k.Sessions() }
func (k *kernelWireGuard) shared() string                                  { return k.Shared() }

func (k *kernelWireGuard) close() { k.Close() }

// sameDevice is IPv6's part where one WireGuard device of the kernel's carries both families: it is all done with IPv4's. It
// implements carrier.
type sameDevice struct {
	absent
	of *kernelWireGuard
}

func (s sameDevice) name() string      { return s.of.name() }
func (s sameDevice) table() *fib.Table { return s.of.table() }

func (s sameDevice) sessions() (map[string]wireguard.Session, error) { return s.of.sessions() }

// withSix adds what carries IPv6 to a carrier of IPv4 whose one tunnel carries both.
func withSix(four part) (carrier, error) {
	switch c := four.(type) {
	case *kernelWireGuard:
		return both{c, sameDevice{of: c}}, nil
	case *sides:
		engine, ok := c.conn.(tunnel.Engine)
		if !ok {
			return nil, fmt.Errorf("one tunnel for both families over %T", c.conn)
		}
		var err error
		if c.halves, err = tunnel.NewHalves(c.dev, engine); err != nil {
			return nil, err
		}
		return both{c, &sides{conn: c.conn, dev: c.dev, six: true, halves: c.halves, guest: true, release: func() {}}}, nil
	}
	return nil, fmt.Errorf("one tunnel for both families by %T", four)
}
