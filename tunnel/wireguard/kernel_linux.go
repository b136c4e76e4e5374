package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"muslin/lease"
	"muslin/tunnel/fib"
)

// ErrNoKernel says that this kernel has no WireGuard.
var ErrNoKernel = errors.New("this kernel has no WireGuard")

// linkType is what the kernel calls such a device.
const linkType = "wireguard"

// KernelConfig is what a Kernel needs.
type KernelConfig struct {
	Name      string // of the device
	Alias     string // that it is given
	Key       PrivateKey
	PSK       lease.PresharedKey // zero: none
	Port      uint16             // to listen on; of a peer that names none, too
	Keepalive time.Duration      // of each peer; 0: none
	MTU       int                // of the device, bytes

	Inner  func(netip.Addr) bool // as Config's
	Adopt  bool                  // another process has the device, which goes on with it until SetPeers
	Logger *slog.Logger
}

// Kernel is a WireGuard device of the kernel's, which carries packets by itself: this room makes it and has its peers
// follow the table. It outlives the process.
type Kernel struct {
	cfg    KernelConfig
	client *wgctrl.Client
	keep   atomic.Bool
	once   sync.Once
	members
}

// OpenKernel makes the device, or takes over the one that is there if it is WireGuard's. ErrNoKernel: the kernel has none.
// Without Adopt the device has this configuration and no peers then, but for those that SetPeers will name: of one that was
// there the sessions stay.
func OpenKernel(cfg KernelConfig) (*Kernel, error) {
	k := &Kernel{cfg: cfg, members: members{port: cfg.Port, inner: cfg.Inner, log: cfg.Logger}}
	if err := k.makeLink(); err != nil {
		return nil, err
	}
	var err error
	if k.client, err = wgctrl.New(); err != nil {
		return nil, errors.Join(fmt.Errorf("WireGuard device %q: %w", cfg.Name, err), k.Close())
	}
	if cfg.Adopt {
		k.keep.Store(true)
		return k, nil
	}
	port, key := int(cfg.Port), wgtypes.Key(cfg.Key.secret)
	if err := k.client.ConfigureDevice(cfg.Name, wgtypes.Config{PrivateKey: &key, ListenPort: &port}); err != nil {
		return nil, errors.Join(fmt.Errorf("configure the WireGuard device %q: %w", cfg.Name, err), k.Close())
	}
	return k, nil
}

func (k *Kernel) makeLink() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = k.cfg.Name, k.cfg.MTU
	made := &netlink.Wireguard{LinkAttrs: attrs}
	err := netlink.LinkAdd(made)
	switch {
	case err == nil && k.cfg.Alias != "":
		if err := netlink.LinkSetAlias(made, k.cfg.Alias); err != nil {
			return errors.Join(fmt.Errorf("name the WireGuard device %q: %w", k.cfg.Name, err), netlink.LinkDel(made))
		}
		return nil
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrNoKernel
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("make the WireGuard device %q: %w", k.cfg.Name, err)
	}
	l, err := netlink.LinkByName(k.cfg.Name)
	if err != nil {
		return fmt.Errorf("find the WireGuard device %q: %w", k.cfg.Name, err)
	}
	if l.Type() != linkType {
		return fmt.Errorf("make the WireGuard device %q: the name is taken by a link of type %s: delete it, or give another --tun-name", k.cfg.Name, l.Type())
	}
	return nil
}

// KernelHas reports whether this kernel has WireGuard: whether it makes such a device, which goes at once.
func KernelHas() (bool, error) {
	k := &Kernel{cfg: KernelConfig{Name: fmt.Sprintf("wg-try-%d", os.Getpid()%1_000_000)}}
	switch err := k.makeLink(); {
	case errors.Is(err, ErrNoKernel):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, k.Close()
}

// Renew is SetPeers after another process has changed the device.
func (k *Kernel) Renew(t *fib.Table) {
	k.once.Do(func() {})
	k.takeStock()
	k.SetPeers(t)
}

// SetPeers has the device's peers be the table's. The first call removes those that an earlier process has left.
func (k *Kernel) SetPeers(t *fib.Table) {
	k.once.Do(k.takeStock)
	k.follow(t, k.set, func() {}, func(gone []fib.PublicKey) {
		cfg := wgtypes.Config{}
		for _, key := range gone {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
		}
		k.configure(cfg)
	})
}

// takeStock has the peers that the device has already count as members of which nothing is right but the key.
func (k *Kernel) takeStock() {
	d, err := k.client.Device(k.cfg.Name)
	if err != nil {
		k.log.Error("cannot read the WireGuard device", "tun", k.cfg.Name, "err", err)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.peers = make(map[fib.PublicKey]peer)
	for _, p := range d.Peers {
		k.peers[fib.PublicKey(p.PublicKey)] = peer{}
	}
}

// greetInterval is a keepalive that is set for a moment: the device sends one at once to a peer that had none, and so
// makes a session (set_peer in the kernel's drivers/net/wireguard/netlink.c).
const greetInterval = time.Second

func (k *Kernel) set(changes []change) {
	cfg := wgtypes.Config{}
	var after wgtypes.Config
	for _, c := range changes {
		p := wgtypes.PeerConfig{PublicKey: wgtypes.Key(c.key), ReplaceAllowedIPs: true}
		if !k.cfg.PSK.IsZero() {
			psk := wgtypes.Key(k.cfg.PSK)
			p.PresharedKey = &psk
		}
		if c.moved {
			p.Endpoint = net.UDPAddrFromAddrPort(c.endpoint)
		}
		for _, s := range c.subnets {
			p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: s.Addr().AsSlice(), Mask: net.CIDRMask(s.Bits(), s.Addr().BitLen())})
		}
		greet, settled := greetInterval, k.cfg.Keepalive
		p.PersistentKeepaliveInterval = &greet
		cfg.Peers = append(cfg.Peers, p)
		after.Peers = append(after.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &settled})
	}
	k.configure(cfg)
	k.configure(after)
}

func (k *Kernel) configure(cfg wgtypes.Config) {
	if err := k.client.ConfigureDevice(k.cfg.Name, cfg); err != nil {
		k.log.Error("the WireGuard device does not take a change of the peers", "tun", k.cfg.Name, "err", err)
	}
}

// Sessions is one for each peer, by its key as text.
func (k *Kernel) Sessions() (map[string]Session, error) {
	d, err := k.client.Device(k.cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("read the WireGuard device %q: %w", k.cfg.Name, err)
	}
	all := make(map[string]Session, len(d.Peers))
	for _, p := range d.Peers {
		s := Session{Handshake: p.LastHandshakeTime, RxBytes: uint64(p.ReceiveBytes), TxBytes: uint64(p.TransmitBytes)}
		if p.Endpoint != nil {
			s.Endpoint = p.Endpoint.AddrPort().String()
		}
		all[fib.PublicKey(p.PublicKey).String()] = s
	}
	return all, nil
}

// Keep says whether Close leaves the device in the host.
func (k *Kernel) Keep(keep bool) { k.keep.Store(keep) }

// Close deletes the device, unless Keep says otherwise.
func (k *Kernel) Close() error {
	if k.client != nil {
		k.client.Close()
	}
	if k.keep.Swap(true) {
		return nil
	}
	l, err := netlink.LinkByName(k.cfg.Name)
	if err == nil && l.Type() == linkType {
		err = netlink.LinkDel(l)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
