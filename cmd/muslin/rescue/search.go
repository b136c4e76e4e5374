package rescue

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
)

// Store is what a search asks of etcd.
type Store interface {
	Config(ctx context.Context) (value []byte, revision int64, err error)
	List(ctx context.Context) (entries []lease.Entry, revision int64, err error)
	Endpoints() []string
	Close() error
}

// Asked is what the command was told, and how the search comes by what it cannot look for itself.
type Asked struct {
	StateDir   string // of the journal
	Memory     string // the file of what a muslin knew here last
	SubnetFile string // "": where flannel's usually is
	Prefix     string // of the store's keys
	Endpoints  string // of the store
	PeersFile  string // "": the store is asked
	Config     []byte // with PeersFile: the network's
	Iface      host.InterfaceOptions
	TUN        string

	IPMasq      bool // it was said whether to masquerade
	NewMAC      bool
	StopFlannel bool

	Running []Process // flannelds that run here; those of other networks are in Others
	Others  []Process
	Adopted []string // what was taken from the first of Running, as flags

	Connect func(context.Context) (Store, error)
	Choose  func(host.InterfaceOptions) (host.Interface, error)
	OwnMAC  func(six bool) (encap.MAC, error) // muslin's, for a node that nobody knows
}

// Search finds out what flannel has on this host, and who the other nodes are.
type Search struct {
	Asked
	// Told are the daemon's flags that were found out; SubnetFile and Iface are found likewise.
	Told map[string][]string

	iface   host.Interface
	file    lease.SubnetFile
	devices []Device

	store    Store // nil: it does not answer
	storeErr error
	config   *lease.Config
	raw      []byte
	leases   []lease.Lease
	values   map[string]string // of the leases, by key
	own      *lease.Lease      // this node's; nil: there is none
	peers    Peers
	source   string
	warnings []string
	memory   *lease.Memory // to be written, for a start without the store
}

// NewSearch makes one.
func NewSearch(a Asked) *Search { return &Search{Asked: a, Told: make(map[string][]string)} }

// Close ends the connection to the store. It may be called again.
func (s *Search) Close() {
	if s.store != nil {
		s.store.Close()
		s.store = nil
	}
}

// Find looks at the host, asks the store, and says what is to be done. It changes nothing.
func (s *Search) Find(ctx context.Context) (*Plan, error) {
	var err error
	if s.devices, err = FindDevices(); err != nil {
		return nil, err
	}
	if err := s.readSubnetFile(); err != nil {
		return nil, err
	}
	if err := s.know(ctx); err != nil {
		return nil, err
	}
	if err := s.config.Supported(); err != nil {
		return nil, err
	}
	if err := s.refuse(); err != nil {
		return nil, err
	}
	j, err := s.journal()
	if err != nil {
		return nil, err
	}
	if err := s.findPeers(j); err != nil {
		return nil, err
	}
	j.Peers = s.peers
	if s.storeErr != nil && s.PeersFile == "" && s.memory == nil {
		if err := s.makeMemory(j); err != nil {
			return nil, err
		}
	}
	if err := s.refusePort(j); err != nil {
		return nil, err
	}
	return s.plan(j), nil
}

// SubnetFiles are the paths where flannel's subnet file may be, the likeliest first.
var SubnetFiles = []string{lease.DefaultSubnetFile, "/var/run/flannel/subnet.env", "/run/k3s/flannel/subnet.env", "/etc/flannel/subnet.env"}

// readSubnetFile finds flannel's subnet file: where --subnet-file or a flanneld says, or where it usually is.
func (s *Search) readSubnetFile() (err error) {
	paths := []string{s.SubnetFile}
	if s.SubnetFile == "" {
		paths, s.SubnetFile = SubnetFiles, lease.DefaultSubnetFile
	}
	for _, path := range paths {
		if s.file, err = lease.ReadSubnetFile(path); err != nil {
			return err
		}
		if s.file.Subnet.IsValid() || s.file.Subnet6.IsValid() {
			s.SubnetFile, s.Told["subnet-file"] = path, []string{path}
			break
		}
	}
	if s.file.IPMasq && !s.IPMasq {
		s.Told["ip-masq"] = []string{"true"}
	}
	return nil
}

// chooseInterface goes by what flannel's device is bound to, where no flag says otherwise; or by the address that the lease
// of the subnet has which is in use here.
func (s *Search) chooseInterface() (err error) {
	o := &s.Iface
	if len(o.Iface) > 0 || len(o.IfaceRegex) > 0 || o.CanReach.IsValid() {
		s.iface, err = s.Choose(*o)
		return err
	}
	for _, dev := range s.devices {
		if dev.Local.Is4() {
			o.Iface = append(o.Iface, dev.Local.String())
		}
		if dev.Under != "" {
			o.Iface = append(o.Iface, dev.Under)
		}
	}
	for _, l := range s.leases {
		if s.file.Subnet.IsValid() && l.Subnet == s.file.Subnet && l.Attrs.PublicIP.IsValid() {
			o.Iface = append(o.Iface, l.Attrs.PublicIP.String())
		}
	}
	if s.iface, err = s.Choose(*o); err != nil && len(o.Iface) > 0 {
		o.Iface = nil // none of them is there: by the default route
		s.iface, err = s.Choose(*o)
	}
	if err == nil {
		name := s.iface.Name
		if s.iface.Addr.IsValid() {
			name = s.iface.Addr.String()
		}
		s.Told["iface"] = []string{name}
	}
	return err
}

// findOwn finds this node's lease: by its PublicIP; or by the subnet that is in use here, where the MAC in it is that of the
// device here. Then flannel was told another PublicIP than the interface has.
func (s *Search) findOwn() {
	mine := func(l lease.Lease) bool {
		if s.config.EnableIPv4 {
			return l.Attrs.PublicIP == s.iface.PublicIP
		}
		return !l.Attrs.PublicIP.IsValid() && l.Attrs.PublicIPv6 == s.iface.PublicIPv6
	}
	var best *lease.Lease
	for i, l := range s.leases {
		if mine(l) && (best == nil || l.Subnet == s.file.Subnet && l.Subnet6 == s.file.Subnet6) {
			best = &s.leases[i]
		}
	}
	for i, l := range s.leases {
		dev := s.device(l.Attrs.VNI.Uint32(), false)
		if best != nil || !l.Attrs.PublicIP.IsValid() || l.Subnet != s.file.Subnet || dev == nil || dev.MAC != l.Attrs.MAC.String() || s.Iface.PublicIP.IsValid() {
			continue
		}
		best = &s.leases[i]
		s.Told["public-ip"] = []string{l.Attrs.PublicIP.String()}
		s.Iface.PublicIP, s.iface.PublicIP = l.Attrs.PublicIP, l.Attrs.PublicIP
		s.Adopted = append(s.Adopted, "--public-ip "+l.Attrs.PublicIP.String()+", which the lease of this node's subnet has")
	}
	s.own = best
}

// device is that with the VNI, of one family, if it is there.
func (s *Search) device(vni uint32, six bool) *Device {
	i := slices.IndexFunc(s.devices, func(d Device) bool { return d.VNI == vni && d.Six == six })
	if i < 0 {
		return nil
	}
	return &s.devices[i]
}

// refuse says what cannot be rescued.
func (s *Search) refuse() error {
	switch s.config.Backend.Type {
	case lease.BackendUDP:
		if len(s.Running) > 0 && !s.StopFlannel {
			return fmt.Errorf("with the udp backend %s itself has the port and the device, and carries the packets: --stop-flannel stops it", s.Running[0])
		}
		if s.NewMAC {
			return errors.New("--new-mac: with the udp backend there are no MACs; leave it out")
		}
	case lease.BackendHostGW:
		if s.NewMAC {
			return errors.New("--new-mac: with host-gw there are no MACs; leave it out")
		}
	case lease.BackendWireGuard:
		return errors.New("wireguard: a rescue would need flannel's private key and its sessions, and the kernel's WireGuard is not what breaks; docs/flannel.md says how to take over for good (\"Taking over a flannel node\")")
	}
	if s.NewMAC && len(s.Running) > 0 && !s.StopFlannel {
		return fmt.Errorf("--new-mac: %s would write its own MAC into the lease again: leave it out, or give --stop-flannel, too", s.Running[0])
	}
	return nil
}

// refuseOthers finds that the subnet of this node's pods is another's now, as after its lease has expired.
func (s *Search) refuseOthers(j *Journal) error {
	if s.own != nil {
		return nil
	}
	for _, l := range s.leases {
		if l.Subnet == j.Subnet && l.Subnet6 == j.Subnet6 {
			return fmt.Errorf("%s is the subnet of this host's pods by %s, and the lease of it is that of %s: where that is this host under another address, give it as --public-ip; else the pods need new addresses, and `muslin run` or flanneld gets a subnet for them", subnets(j.Subnet, j.Subnet6), s.SubnetFile, l.Attrs)
		}
	}
	return nil
}

// refusePort finds what else has the port.
func (s *Search) refusePort(j *Journal) error {
	port := s.config.Backend.Port
	if s.config.Backend.Type != lease.BackendVXLAN {
		return nil
	}
	other, err := j.PortHolder(port)
	if err != nil || other == "" {
		return err
	}
	return fmt.Errorf("the vxlan device %s is up and has UDP port %d as well, which stays taken when flannel's goes down: `ip link set %[1]s down` first, which ends the traffic of the network that it is of; or give the two networks different ports (Backend.Port, on all nodes)", other, port)
}

// journal is what flannel has here.
func (s *Search) journal() (*Journal, error) {
	j := NewJournal(s.StateDir)
	j.Backend, j.Network, j.Network6, j.NewMAC = s.config.Backend.Type, s.config.Network, s.config.IPv6Network, s.NewMAC
	j.Subnet, j.Subnet6 = s.file.Subnet, s.file.Subnet6
	if s.own != nil {
		j.Subnet, j.Subnet6 = s.own.Subnet, s.own.Subnet6
		j.Lease = &LeaseBefore{Key: s.own.Key, Value: s.values[s.own.Key]}
	}
	if !j.Subnet.IsValid() && !j.Subnet6.IsValid() {
		return nil, fmt.Errorf("this host was no flannel node, as far as can be seen: etcd has no lease of %v, and there is no subnet file; if flannel was told otherwise, give --public-ip or --subnet-file; for a new node use `muslin run`", s.iface.PublicIP)
	}
	if err := s.refuseOthers(j); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(s.SubnetFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	j.SubnetFile, j.SubnetText = s.SubnetFile, string(text)
	j.SubnetStale = s.file.Subnet.IsValid() && s.file.Subnet != j.Subnet || s.file.Subnet6.IsValid() && s.file.Subnet6 != j.Subnet6
	for _, p := range s.Running {
		j.Ran = append(j.Ran, p.PID)
	}
	if s.config.Backend.Type == lease.BackendVXLAN {
		if err := s.addDevices(j); err != nil {
			return nil, err
		}
	}
	if s.config.Backend.Type == lease.BackendHostGW || s.config.Backend.DirectRouting {
		for _, network := range []netip.Prefix{j.Network, j.Network6} {
			direct, err := FindDirect(network)
			if err != nil {
				return nil, err
			}
			j.Direct = append(j.Direct, direct...)
		}
	}
	return j, nil
}

// addDevices adds those that are there, and those that should be.
func (s *Search) addDevices(j *Journal) error {
	vni := s.config.Backend.VNI.Uint32()
	for _, six := range []bool{false, true} {
		if six && !s.config.EnableIPv6 || !six && !s.config.EnableIPv4 {
			continue
		}
		var d Device
		if found := s.device(vni, six); found != nil {
			d = *found
		} else if err := s.absent(&d, six); err != nil {
			return err
		}
		if s.own != nil {
			mac := s.own.Attrs.MAC
			if six {
				mac = s.own.Attrs.MAC6
			}
			if mac != (encap.MAC{}) {
				d.Keep = mac.String()
			}
		}
		if d.Keep == "" {
			// Nobody knows this node: flannel would make a MAC at random as well.
			mac, err := s.OwnMAC(six)
			if err != nil {
				return err
			}
			d.Keep = mac.String()
		}
		j.Devices = append(j.Devices, d)
	}
	return nil
}

// absent is a device that is gone, as flannel makes it.
func (s *Search) absent(d *Device, six bool) error {
	b, under := s.config.Backend, s.iface
	if six {
		opts := s.Iface
		opts.Families = host.BothFamilies
		if !s.config.EnableIPv4 {
			opts.Families = host.IPv6
		}
		var err error
		if under, err = host.ChooseInterface(opts); err != nil {
			return err
		}
		under.Addr = under.Addr6
	}
	mtu := int(b.MTU)
	if mtu == 0 {
		mtu = under.MTU
	}
	*d = Device{Name: DeviceName(b.VNI.Uint32(), six), Six: six, VNI: b.VNI.Uint32(), Port: b.Port, MTU: mtu - flannelOverhead,
		Under: under.Name, Local: under.Addr, Learning: b.Learning, GBP: b.GBP}
	return nil
}
