package rescue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muslin/encap"
	"muslin/lease"
)

// StorePatience is how long a command that is in a hurry waits for etcd.
const StorePatience = 1200 * time.Millisecond

// flannelOverhead is what flannel takes off the MTU, with IPv6 as well.
const flannelOverhead = 50

// know gets the network's config and the leases: from the store, or else from whoever has them.
func (s *Search) know(ctx context.Context) error {
	if s.PeersFile != "" {
		return s.knowFile()
	}
	s.storeErr = s.ask(ctx)
	if errors.Is(s.storeErr, context.DeadlineExceeded) {
		s.storeErr = fmt.Errorf("etcd at %s does not answer within %v", s.Endpoints, StorePatience)
	}
	if s.storeErr != nil && s.nothingHere() {
		return fmt.Errorf("nothing of flannel's is to be seen on this host, no subnet file, no vxlan device and no flanneld, and etcd cannot be asked: %w; where this is flannel's node, say where its etcd is (--etcd-endpoints); for a new node use `muslin run`", s.storeErr)
	}
	if err := s.chooseInterface(); err != nil {
		return err
	}
	if s.storeErr == nil {
		s.source = "from etcd at " + strings.Join(s.store.Endpoints(), ",")
		s.findOwn()
		return nil
	}
	if errors.Is(s.storeErr, lease.ErrNoConfig) {
		return fmt.Errorf("%w under %s: say where flannel's is with --etcd-prefix", s.storeErr, s.Prefix)
	}
	s.Close()
	if s.recall() {
		return nil
	}
	return s.knowKernel()
}

// nothingHere says that there is no trace of flannel, nor of a muslin in its place.
func (s *Search) nothingHere() bool {
	m, _ := lease.ReadMemory(s.Memory)
	return m == nil && len(s.devices) == 0 && len(s.Running) == 0 && !s.file.Subnet.IsValid() && !s.file.Subnet6.IsValid()
}

func (s *Search) ask(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, StorePatience)
	defer cancel()
	if s.store, err = s.Connect(ctx); err != nil {
		s.store = nil
		return err
	}
	if s.raw, _, err = s.store.Config(ctx); err != nil {
		return err
	}
	if s.config, err = lease.ParseConfig(s.raw); err != nil {
		return err
	}
	entries, _, err := s.store.List(ctx)
	s.setLeases(entries)
	return err
}

func (s *Search) setLeases(entries []lease.Entry) {
	s.values = make(map[string]string)
	for _, e := range entries {
		if l, err := lease.ParseLease(e); err == nil {
			s.leases, s.values[l.Key] = append(s.leases, l), string(e.Value)
		}
	}
}

// knowFile takes everything from a peers file and the flags.
func (s *Search) knowFile() error {
	data, err := os.ReadFile(s.PeersFile)
	if err != nil {
		return fmt.Errorf("--peers-file: %w", err)
	}
	entries, err := lease.ParsePeersFile(data)
	if err != nil {
		return fmt.Errorf("--peers-file %s: %w", s.PeersFile, err)
	}
	s.setLeases(entries)
	if s.config, err = lease.ParseConfig(s.Config); err != nil {
		return err
	}
	s.source = "from " + s.PeersFile
	if err := s.chooseInterface(); err != nil {
		return err
	}
	s.findOwn()
	if s.own == nil {
		return fmt.Errorf("--peers-file %s: there is no lease of this node, %v; give the address that it was written under with --public-ip", s.PeersFile, s.iface.PublicIP)
	}
	if s.NewMAC {
		return errors.New("--new-mac: without etcd nobody would learn of it; leave it out")
	}
	return nil
}

// recall takes what a muslin of this host knew last, if it was the same node.
func (s *Search) recall() bool {
	m, err := lease.ReadMemory(s.Memory)
	if err != nil || m == nil || m.Prefix != s.Prefix || !m.Lease.Reserved && time.Now().After(m.Lease.Expires) {
		return false
	}
	cfg, err := lease.ParseConfig(m.Config)
	if err != nil || m.Lease.Attrs.PublicIP != s.iface.PublicIP && cfg.EnableIPv4 || s.file.Subnet.IsValid() && m.Lease.Subnet != s.file.Subnet {
		return false
	}
	s.config, s.raw, s.memory = cfg, m.Config, m
	s.setLeases(m.Entries())
	s.source = "as muslin knew them here last, for etcd does not answer"
	s.findOwn()
	return s.own != nil
}

// knowKernel makes a config of what flannel has set up here.
func (s *Search) knowKernel() error {
	unknown := func(why string) error {
		return fmt.Errorf("%w; and without it %s: get etcd back, or give what was saved with --peers-file (and --network)", s.storeErr, why)
	}
	if !s.file.Subnet.IsValid() && !s.file.Subnet6.IsValid() {
		if len(s.devices)+len(s.Running) == 0 {
			return fmt.Errorf("%w; and nothing of a flannel is on this host: no subnet file (--subnet-file), no device flannel.VNI, no flanneld. If there was one, say where etcd is with --etcd-endpoints; else join with `muslin run`", s.storeErr)
		}
		return unknown("this node's subnet is not known: there is no subnet file of flannel's (--subnet-file)")
	}
	four, six := s.deviceOf(s.file.Subnet), s.deviceOf(s.file.Subnet6)
	if s.file.Subnet.IsValid() && four == nil || s.file.Subnet6.IsValid() && six == nil {
		return unknown("nothing says what flannel's device, which is gone, was like: its VNI, its MAC, its peers")
	}
	if s.NewMAC {
		return unknown("nobody would learn of a new MAC (--new-mac)")
	}
	first := four
	if first == nil {
		first = six
	}
	backend := map[string]any{"Type": lease.BackendVXLAN, "VNI": first.VNI, "Port": first.Port}
	if first.MTU+flannelOverhead != s.iface.MTU {
		backend["MTU"] = first.MTU + flannelOverhead
	}
	config := map[string]any{"Backend": backend}
	if four != nil {
		config["Network"], config["SubnetLen"] = s.file.Network.String(), s.file.Subnet.Bits()
		if direct, err := FindDirect(s.file.Network); err == nil && len(direct) > 0 {
			backend["DirectRouting"] = true
		}
	} else {
		config["EnableIPv4"] = false
	}
	if six != nil {
		config["EnableIPv6"], config["IPv6Network"], config["IPv6SubnetLen"] = true, s.file.Network6.String(), s.file.Subnet6.Bits()
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if s.config, err = lease.ParseConfig(raw); err != nil {
		return unknown(fmt.Sprintf("what flannel left here makes no config: %v", err))
	}
	s.raw = raw
	s.source = "as the kernel of this host has them, for etcd does not answer"
	return nil
}

// deviceOf is flannel's device for a subnet: where a host has several networks, it is the one with an address in it.
func (s *Search) deviceOf(subnet netip.Prefix) (found *Device) {
	if !subnet.IsValid() {
		return nil
	}
	for i := range s.devices {
		d := &s.devices[i]
		if d.Six != subnet.Addr().Is6() {
			continue
		}
		if slices.ContainsFunc(d.Addresses, func(a Address) bool { return subnet.Contains(a.Prefix.Addr()) }) {
			return d
		}
		if len(d.Addresses) == 0 { // it has lost it
			found = d
		}
	}
	return found
}

// makeMemory has the daemon start without the store, by what the kernel's tables say. How long the lease still
// lives nobody knows here; flannel renews one an hour before its end.
func (s *Search) makeMemory(j *Journal) error {
	if s.config.EnableIPv6 || !s.config.EnableIPv4 {
		return fmt.Errorf("%w; and of a network with IPv6 the kernel's tables do not say which two halves are one node: give what was saved with --peers-file (and --net-config-path)", s.storeErr)
	}
	attrs := func(p Peer) lease.Attrs {
		return lease.Attrs{PublicIP: p.PublicIP, BackendType: lease.BackendVXLAN, VNI: s.config.Backend.VNI, MAC: p.MAC}
	}
	mac, _ := encap.ParseMAC(j.Devices[0].Keep)
	own := lease.Lease{Key: lease.Key(j.Subnet), Subnet: j.Subnet, Expires: time.Now().Add(time.Hour),
		Attrs: attrs(Peer{PublicIP: s.iface.PublicIP, MAC: mac})}
	m := &lease.Memory{Prefix: s.Prefix, Config: s.raw, Lease: own, Leases: []lease.Lease{own}}
	for _, p := range s.peers {
		if p.Direct && p.MAC == (encap.MAC{}) {
			p.MAC = encap.LocalMAC([6]byte{}) // is not used, and has to be one
		}
		m.Leases = append(m.Leases, lease.Lease{Key: lease.Key(p.Subnet), Subnet: p.Subnet, Attrs: attrs(p)})
	}
	s.memory = m
	return nil
}

// Remember writes down what the daemon is to start from. Where the store answers it is that, and not what an earlier daemon
// knew.
func (s *Search) Remember() error {
	if s.storeErr == nil {
		if err := os.Remove(s.Memory); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("forget what was known of the network: %w", err)
		}
		return nil
	}
	content, err := json.Marshal(s.memory)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.Memory), 0o700); err != nil {
		return fmt.Errorf("state directory: %w; give another with --state-dir", err)
	}
	return lease.WriteMemory(s.Memory, content)
}
