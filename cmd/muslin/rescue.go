package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"muslin/cmd/muslin/rescue"
	"muslin/encap"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// rescueFlags are those of "rescue" besides "run"'s.
type rescueFlags struct {
	run         runFlags
	undo        bool
	yes         bool
	dryRun      bool
	newMAC      bool
	stopFlannel bool
}

func newRescueCommand() *cobra.Command {
	var r rescueFlags
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Take over from a flannel whose data path is broken, and give it back (--undo)",
		Long: `rescue restores the pods' traffic on a host whose flannel cannot: its vxlan device is gone or down, its routes or forwarding
entries are, or the kernel's vxlan is broken. It finds flannel's subnet file, devices and lease, says in numbered lines
what it will do, asks, and carries the packets from then on, in the foreground, as "muslin run" does and with its flags.
What a flanneld that runs was given on its command line, where etcd is for example, need not be given again.

flannel's device is set down, not deleted, and its MAC is kept, so that no other node has to learn anything. A flanneld that
runs is not stopped unless --stop-flannel says so. Where etcd is down as well, rescue goes by what is known on this
host: a --peers-file, what muslin knew, or the kernel's tables.

--undo gives everything back to flannel, whole: device, address, routes, neighbours and forwarding entries as flannel sets them
up for the peers that there are now. Ctrl-C or SIGTERM gives it back as it was found. Of a daemon that was killed,
"muslin run" or "muslin rescue" with the same flags goes on, or --undo gives back what it took.`,
		Example: `  muslin rescue --dry-run                                 # what it finds, and what it would do
  muslin rescue --etcd-endpoints https://etcd:2379 --etcd-cafile ca.pem --etcd-certfile node.pem --etcd-keyfile node-key.pem
  systemd-run --unit muslin-rescue muslin rescue --yes    # so that it outlives the ssh session
  muslin rescue --undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p := kernel.NetAdmin(); p.Answer == kernel.No {
				return &kernel.NotPrivilegedError{Probe: p}
			}
			if r.undo {
				return r.giveBack(cmd)
			}
			return r.rescue(cmd)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.undo, "undo", false, "give everything back to flannel, while the rescue's daemon runs or after it")
	f.BoolVarP(&r.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&r.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&r.newMAC, "new-mac", false, "take a VtepMAC of muslin's own and publish it in the lease, instead of keeping flannel's")
	f.BoolVar(&r.stopFlannel, "stop-flannel", false, "stop flanneld first (systemctl stop, or SIGTERM); --undo starts its service again")
	r.run.register(f)
	f.SortFlags = false
	return cmd
}

// rescue takes over, and is the daemon.
func (r *rescueFlags) rescue(cmd *cobra.Command) error {
	signal.Ignore(syscall.SIGPIPE)
	if err := r.contradictions(); err != nil {
		return err
	}
	if dialControl(r.run.control) == nil {
		return fmt.Errorf("a muslin daemon runs behind %s: `muslin status` shows it, `muslin rescue --undo` ends a rescue", r.run.control)
	}
	f := &finding{flags: r, set: cmd.Flags(), running: rescue.FindFlanneld(), told: make(map[string][]string)}
	if err := errors.Join(f.adopt(), goOn(cmd.Flags(), r.run.stateDir)); err != nil {
		return err
	}
	opts, err := r.run.options(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	d := newDaemon(opts)
	j, err := rescue.Read(r.run.stateDir)
	if err == nil && j != nil && !j.Rebooted() {
		if err := j.Here(); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "a rescue is under way since %s, and its daemon is not there: going on with it\n", j.Since.Format(time.RFC3339))
		if r.dryRun {
			return nil
		}
	} else {
		f.d = d
		plan, err := f.find(cmd.Context())
		if err != nil {
			return err
		}
		defer f.close()
		if err := plan.Print(cmd.OutOrStdout()); err != nil || r.dryRun {
			return err
		}
		if err := r.confirm(cmd, "Do that?"); err != nil {
			return err
		}
		if err := f.remember(); err != nil {
			return err
		}
		f.close()
		d.rescue = plan.Journal
		if r.stopFlannel {
			d.toStop = plan.Running
		}
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if !hangupsIgnored {
		// A dropped session must not end what carries the node's traffic.
		go takeHangups().run(ctx, func() { nothingToReload(opts.log) }, func() { opts.log.Warn("the terminal is gone; the rescue goes on") })
	}
	err = d.run(ctx)
	if err != nil && d.view.ready() {
		return ranError{err}
	}
	return err
}

// confirm asks at a terminal only: what is piped in is no answer to a plan that nobody has seen.
func (r *rescueFlags) confirm(cmd *cobra.Command, question string) error {
	if !r.yes && !isTerminal(cmd.InOrStdin()) {
		return fmt.Errorf("%w: there is no terminal to ask on: --yes does it without asking", errDeclined)
	}
	return confirm(cmd, r.yes, question)
}

func (r *rescueFlags) contradictions() error {
	switch {
	case r.run.config != "":
		return errors.New("--config: rescue is about the one network of a flannel; leave it out")
	case r.run.replace:
		return errors.New("--replace: a rescue takes flannel's place, not a muslin's; leave it out, or use `muslin run --replace` where a rescue runs")
	case r.run.embedded:
		return errors.New("--embedded-etcd: a flannel node has its network in an etcd that is there; say where with --etcd-endpoints, or give a --peers-file when it is gone")
	}
	return nil
}

// finding is what is found out about the flannel of this host.
type finding struct {
	flags   *rescueFlags
	set     *pflag.FlagSet
	d       *daemon
	running []rescue.Process
	adopted []string
	told    map[string][]string // flags that were found out

	iface   host.Interface
	file    lease.SubnetFile
	devices []rescue.Device

	store    *etcd.Store // nil: it does not answer
	storeErr error
	config   *lease.Config
	raw      []byte
	leases   []lease.Lease
	values   map[string]string // of the leases, by key
	own      *lease.Lease      // this node's; nil: there is none
	peers    rescue.Peers
	source   string
	memory   *lease.Memory // to be written, for a start without the store
}

func (f *finding) close() {
	if f.store != nil {
		f.store.Close()
		f.store = nil
	}
}

// alike are flanneld's flags that mean the same here.
var alike = []string{"etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile", "etcd-username", "etcd-password",
	"iface", "iface-regex", "iface-can-reach", "public-ip", "public-ipv6", "subnet-file", "ip-masq", "subnet-lease-renew-margin", "iptables-forward-rules"}

// adopt takes what a flanneld that runs was told, where nothing else is given.
func (f *finding) adopt() error {
	if len(f.running) == 0 {
		return nil
	}
	p := f.running[0]
	if len(f.running) > 1 {
		return nil // which of them is meant has to be said
	}
	if kube := p.Flag("kube-subnet-mgr"); len(kube) > 0 && kube[0] != "false" {
		return fmt.Errorf("%s keeps its leases in Kubernetes (--kube-subnet-mgr), not in etcd: muslin knows no such leases and cannot stand in for it", p)
	}
	for _, name := range alike {
		values := p.Flag(name)
		if len(values) == 0 || f.set.Changed(name) {
			continue
		}
		for _, v := range values {
			if err := f.set.Set(name, v); err != nil {
				return fmt.Errorf("--%s, as %s has it: %w", name, p, err)
			}
		}
		if name == "etcd-password" {
			values = []string{"…"}
		}
		f.adopted = append(f.adopted, "--"+name+" "+strings.Join(values, " --"+name+" "))
	}
	return nil
}

// find looks at the host and asks the store.
func (f *finding) find(ctx context.Context) (*rescue.Plan, error) {
	var err error
	if f.devices, err = rescue.FindDevices(); err != nil {
		return nil, err
	}
	if err := f.readSubnetFile(); err != nil {
		return nil, err
	}
	if err := f.know(ctx); err != nil {
		return nil, err
	}
	if err := f.config.Supported(); err != nil {
		return nil, err
	}
	if err := f.refuse(); err != nil {
		return nil, err
	}
	j, err := f.journal()
	if err != nil {
		return nil, err
	}
	if err := f.findPeers(j); err != nil {
		return nil, err
	}
	j.Peers = f.peers
	if f.storeErr != nil && f.flags.run.peersFile == "" && f.memory == nil {
		if err := f.makeMemory(j); err != nil {
			return nil, err
		}
	}
	if port := f.config.Backend.Port; f.config.Backend.Type == lease.BackendVXLAN {
		if other, err := j.PortHolder(port); err != nil || other != "" {
			return nil, errors.Join(err, fmt.Errorf("the vxlan device %s is up and has UDP port %d as well, which stays taken when flannel's goes down: `ip link set %[1]s down` first", other, port))
		}
	}
	return f.plan(j), nil
}

// subnetFiles are where flannel's may be.
var subnetFiles = []string{lease.DefaultSubnetFile, "/var/run/flannel/subnet.env", "/run/k3s/flannel/subnet.env", "/etc/flannel/subnet.env"}

// readSubnetFile finds flannel's subnet file: where --subnet-file or a flanneld says, or where it usually is.
func (f *finding) readSubnetFile() (err error) {
	paths := subnetFiles
	if f.set.Changed("subnet-file") {
		paths = []string{f.flags.run.subnetFile}
	}
	for _, path := range paths {
		if f.file, err = lease.ReadSubnetFile(path); err != nil {
			return err
		}
		if f.file.Subnet.IsValid() || f.file.Subnet6.IsValid() {
			f.flags.run.subnetFile, f.told["subnet-file"] = path, []string{path}
			break
		}
	}
	if f.file.IPMasq && !f.set.Changed("ip-masq") {
		f.flags.run.ipMasq, f.told["ip-masq"] = true, []string{"true"}
	}
	return nil
}

// chooseInterface goes by what flannel's device is bound to, where no flag says otherwise; or by the address that the lease
// of the subnet has which is in use here.
func (f *finding) chooseInterface() (err error) {
	o := &f.d.opts.iface
	if len(o.Iface) > 0 || len(o.IfaceRegex) > 0 || o.CanReach.IsValid() {
		f.iface, err = f.d.chooseInterface()
		return err
	}
	for _, dev := range f.devices {
		if dev.Local.Is4() {
			o.Iface = append(o.Iface, dev.Local.String())
		}
		if dev.Under != "" {
			o.Iface = append(o.Iface, dev.Under)
		}
	}
	for _, l := range f.leases {
		if f.file.Subnet.IsValid() && l.Subnet == f.file.Subnet && l.Attrs.PublicIP.IsValid() {
			o.Iface = append(o.Iface, l.Attrs.PublicIP.String())
		}
	}
	if f.iface, err = f.d.chooseInterface(); err != nil && len(o.Iface) > 0 {
		o.Iface = nil // none of them is there: by the default route
		f.iface, err = f.d.chooseInterface()
	}
	if err == nil {
		name := f.iface.Name
		if f.iface.Addr.IsValid() {
			name = f.iface.Addr.String()
		}
		f.told["iface"] = []string{name}
	}
	return err
}

// know gets the network's config and the leases: from the store, or else from whoever has them.
func (f *finding) know(ctx context.Context) error {
	if f.flags.run.peersFile != "" {
		return f.knowFile()
	}
	f.storeErr = f.ask(ctx)
	if err := f.chooseInterface(); err != nil {
		return err
	}
	if f.storeErr == nil {
		f.source = "from etcd at " + strings.Join(f.store.Endpoints(), ",")
		f.findOwn()
		return nil
	}
	if errors.Is(f.storeErr, lease.ErrNoConfig) {
		return fmt.Errorf("%w under %s: say where flannel's is with --etcd-prefix", f.storeErr, f.flags.run.store.prefix)
	}
	f.close()
	if f.recall() {
		return nil
	}
	return f.knowKernel()
}

func (f *finding) ask(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	if f.store, err = f.flags.run.store.reach(ctx, f.d.log); err != nil {
		return err
	}
	if f.raw, _, err = f.store.Config(ctx); err != nil {
		return err
	}
	if f.config, err = lease.ParseConfig(f.raw); err != nil {
		return err
	}
	entries, _, err := f.store.List(ctx)
	f.setLeases(entries)
	return err
}

func (f *finding) setLeases(entries []lease.Entry) {
	f.values = make(map[string]string)
	for _, e := range entries {
		if l, err := lease.ParseLease(e); err == nil {
			f.leases, f.values[l.Key] = append(f.leases, l), string(e.Value)
		}
	}
}

// findOwn finds this node's lease: by its PublicIP; or by the subnet that is in use here, where the MAC in it is that of the
// device here. Then flannel was told another PublicIP than the interface has.
func (f *finding) findOwn() {
	mine := func(l lease.Lease) bool {
		if f.config.EnableIPv4 {
			return l.Attrs.PublicIP == f.iface.PublicIP
		}
		return !l.Attrs.PublicIP.IsValid() && l.Attrs.PublicIPv6 == f.iface.PublicIPv6
	}
	var best *lease.Lease
	for i, l := range f.leases {
		if mine(l) && (best == nil || l.Subnet == f.file.Subnet && l.Subnet6 == f.file.Subnet6) {
			best = &f.leases[i]
		}
	}
	for i, l := range f.leases {
		dev := f.device(l.Attrs.VNI.Uint32(), false)
		if best != nil || !l.Attrs.PublicIP.IsValid() || l.Subnet != f.file.Subnet || dev == nil || dev.MAC != l.Attrs.MAC.String() || f.set.Changed("public-ip") {
			continue
		}
		best = &f.leases[i]
		f.told["public-ip"] = []string{l.Attrs.PublicIP.String()}
		f.d.opts.iface.PublicIP, f.iface.PublicIP = l.Attrs.PublicIP, l.Attrs.PublicIP
		f.adopted = append(f.adopted, "--public-ip "+l.Attrs.PublicIP.String()+", which the lease of this node's subnet has")
	}
	f.own = best
}

// device is that with the VNI, of one family, if it is there.
func (f *finding) device(vni uint32, six bool) *rescue.Device {
	i := slices.IndexFunc(f.devices, func(d rescue.Device) bool { return d.VNI == vni && d.Six == six })
	if i < 0 {
		return nil
	}
	return &f.devices[i]
}

// knowFile takes everything from a peers file and the flags.
func (f *finding) knowFile() error {
	data, err := os.ReadFile(f.flags.run.peersFile)
	if err != nil {
		return fmt.Errorf("--peers-file: %w", err)
	}
	entries, err := lease.ParsePeersFile(data)
	if err != nil {
		return fmt.Errorf("--peers-file %s: %w", f.flags.run.peersFile, err)
	}
	f.setLeases(entries)
	if f.config, err = lease.ParseConfig(f.d.opts.wantConfig); err != nil {
		return err
	}
	f.source = "from " + f.flags.run.peersFile
	if err := f.chooseInterface(); err != nil {
		return err
	}
	f.findOwn()
	if f.own == nil {
		return fmt.Errorf("--peers-file %s: there is no lease of this node, %v; give the address that it was written under with --public-ip", f.flags.run.peersFile, f.iface.PublicIP)
	}
	if f.flags.newMAC {
		return errors.New("--new-mac: without etcd nobody would learn of it; leave it out")
	}
	return nil
}

// recall takes what a muslin of this host knew last, if it was the same node.
func (f *finding) recall() bool {
	m, err := lease.ReadMemory(filepath.Join(f.flags.run.stateDir, memoryName))
	if err != nil || m == nil || m.Prefix != f.flags.run.store.prefix || !m.Lease.Reserved && time.Now().After(m.Lease.Expires) {
		return false
	}
	cfg, err := lease.ParseConfig(m.Config)
	if err != nil || m.Lease.Attrs.PublicIP != f.iface.PublicIP && cfg.EnableIPv4 || f.file.Subnet.IsValid() && m.Lease.Subnet != f.file.Subnet {
		return false
	}
	f.config, f.raw, f.memory = cfg, m.Config, m
	f.setLeases(m.Entries())
	f.source = "as muslin knew them here last, for etcd does not answer"
	f.findOwn()
	return f.own != nil
}

// knowKernel makes a config of what flannel has set up here.
func (f *finding) knowKernel() error {
	unknown := func(why string) error {
		return fmt.Errorf("%w; and without it %s: get etcd back, or give what was saved with --peers-file (and --network)", f.storeErr, why)
	}
	if !f.file.Subnet.IsValid() && !f.file.Subnet6.IsValid() {
		return unknown("this node's subnet is not known: there is no subnet file of flannel's (--subnet-file)")
	}
	var four, six *rescue.Device
	for i := range f.devices {
		if d := &f.devices[i]; d.Six {
			six = d
		} else {
			four = d
		}
	}
	if f.file.Subnet.IsValid() && four == nil || f.file.Subnet6.IsValid() && six == nil {
		return unknown("nothing says what flannel's device, which is gone, was like: its VNI, its MAC, its peers")
	}
	if f.flags.newMAC {
		return unknown("nobody would learn of a new MAC (--new-mac)")
	}
	first := four
	if first == nil {
		first = six
	}
	backend := map[string]any{"Type": lease.BackendVXLAN, "VNI": first.VNI, "Port": first.Port}
	if first.MTU+flannelOverhead != f.iface.MTU {
		backend["MTU"] = first.MTU + flannelOverhead
	}
	config := map[string]any{"Backend": backend}
	if four != nil {
		config["Network"], config["SubnetLen"] = f.file.Network.String(), f.file.Subnet.Bits()
		if direct, err := rescue.FindDirect(f.file.Network); err == nil && len(direct) > 0 {
			backend["DirectRouting"] = true
		}
	} else {
		config["EnableIPv4"] = false
	}
	if six != nil {
		config["EnableIPv6"], config["IPv6Network"], config["IPv6SubnetLen"] = true, f.file.Network6.String(), f.file.Subnet6.Bits()
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if f.config, err = lease.ParseConfig(raw); err != nil {
		return unknown(fmt.Sprintf("what flannel left here makes no config: %v", err))
	}
	f.raw = raw
	f.source = "as the kernel of this host has them, for etcd does not answer"
	return nil
}

// flannelOverhead is what flannel takes off the MTU, with IPv6 as well.
const flannelOverhead = 50

// refuse says what cannot be rescued.
func (f *finding) refuse() error {
	switch f.config.Backend.Type {
	case lease.BackendUDP:
		if len(f.running) > 0 && !f.flags.stopFlannel {
			return fmt.Errorf("with the udp backend %s itself has the port and the device, and carries the packets: --stop-flannel stops it", f.running[0])
		}
		if f.flags.newMAC {
			return errors.New("--new-mac: with the udp backend there are no MACs; leave it out")
		}
	case lease.BackendHostGW:
		if f.flags.newMAC {
			return errors.New("--new-mac: with host-gw there are no MACs; leave it out")
		}
	case lease.BackendWireGuard:
		return errors.New("wireguard: a rescue would need flannel's private key and its sessions, and the kernel's WireGuard is not what breaks; docs/flannel.md says how to take over for good (\"Taking over a flannel node\")")
	}
	if f.flags.newMAC && len(f.running) > 0 && !f.flags.stopFlannel {
		return fmt.Errorf("--new-mac: %s would write its own MAC into the lease again: leave it out, or give --stop-flannel, too", f.running[0])
	}
	return nil
}

// journal is what flannel has here.
func (f *finding) journal() (*rescue.Journal, error) {
	j := rescue.NewJournal(f.flags.run.stateDir)
	j.Backend, j.Network, j.Network6, j.NewMAC = f.config.Backend.Type, f.config.Network, f.config.IPv6Network, f.flags.newMAC
	j.Subnet, j.Subnet6 = f.file.Subnet, f.file.Subnet6
	if f.own != nil {
		j.Subnet, j.Subnet6 = f.own.Subnet, f.own.Subnet6
		j.Lease = &rescue.LeaseBefore{Key: f.own.Key, Value: f.values[f.own.Key]}
	}
	if !j.Subnet.IsValid() && !j.Subnet6.IsValid() {
		return nil, fmt.Errorf("this host was no flannel node, as far as can be seen: etcd has no lease of %v, and there is no subnet file; if flannel was told otherwise, give --public-ip or --subnet-file; for a new node use `muslin run`", f.iface.PublicIP)
	}
	text, err := os.ReadFile(f.flags.run.subnetFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	j.SubnetFile, j.SubnetText, j.Flags = f.flags.run.subnetFile, string(text), f.daemonFlags()
	if f.config.Backend.Type == lease.BackendVXLAN {
		if err := f.addDevices(j); err != nil {
			return nil, err
		}
	}
	if f.config.Backend.Type == lease.BackendHostGW || f.config.Backend.DirectRouting {
		for _, network := range []netip.Prefix{j.Network, j.Network6} {
			direct, err := rescue.FindDirect(network)
			if err != nil {
				return nil, err
			}
			j.Direct = append(j.Direct, direct...)
		}
	}
	return j, nil
}

// daemonFlags are those that were given, or taken from a flanneld, or found out; but for a password, which is written
// nowhere.
func (f *finding) daemonFlags() map[string][]string {
	all := make(map[string][]string)
	ours := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(runFlags).register(ours)
	f.set.VisitAll(func(flag *pflag.Flag) {
		if !flag.Changed || ours.Lookup(flag.Name) == nil || slices.Contains([]string{"etcd-password", "state-dir", "log-level", "log-format"}, flag.Name) {
			return
		}
		all[flag.Name] = []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			all[flag.Name] = list.GetSlice()
		}
	})
	maps.Copy(all, f.told)
	return all
}

// addDevices adds those that are there, and those that should be.
func (f *finding) addDevices(j *rescue.Journal) error {
	vni := f.config.Backend.VNI.Uint32()
	for _, six := range []bool{false, true} {
		if six && !f.config.EnableIPv6 || !six && !f.config.EnableIPv4 {
			continue
		}
		var d rescue.Device
		if found := f.device(vni, six); found != nil {
			d = *found
		} else if err := f.absent(&d, six); err != nil {
			return err
		}
		if f.own != nil {
			mac := f.own.Attrs.MAC
			if six {
				mac = f.own.Attrs.MAC6
			}
			if mac != (encap.MAC{}) {
				d.Keep = mac.String()
			}
		}
		if d.Keep == "" {
			// Nobody knows this node: flannel would make a MAC at random as well.
			mac, err := f.d.vtepMAC(&source{}, six, nil)
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
func (f *finding) absent(d *rescue.Device, six bool) error {
	b, under := f.config.Backend, f.iface
	if six {
		opts := f.d.opts.iface
		opts.Families = host.BothFamilies
		if !f.config.EnableIPv4 {
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
	*d = rescue.Device{Name: rescue.DeviceName(b.VNI.Uint32(), six), Six: six, VNI: b.VNI.Uint32(), Port: b.Port, MTU: mtu - flannelOverhead,
		Under: under.Name, Local: under.Addr, Learning: b.Learning, GBP: b.GBP}
	return nil
}

// findPeers finds the other nodes: by the leases, or else in the kernel's tables.
func (f *finding) findPeers(j *rescue.Journal) error {
	if f.leases != nil {
		f.peers = peersOf(f.config, f.leases, j)
		return nil
	}
	for i := range j.Devices {
		f.peers = append(f.peers, j.Devices[i].Peers()...)
	}
	for _, r := range j.Direct {
		f.peers = append(f.peers, rescue.Peer{Subnet: r.Prefix, PublicIP: r.Gateway, Direct: true})
	}
	if len(f.peers) == 0 {
		return fmt.Errorf("%w; and the kernel's tables here know no peers any more: get etcd back, or give what was saved with --peers-file (and --network)", f.storeErr)
	}
	return nil
}

// peersOf are the other nodes that flannel reaches, by their leases.
func peersOf(cfg *lease.Config, leases []lease.Lease, j *rescue.Journal) rescue.Peers {
	peers := rescue.Peers{}
	add := func(p rescue.Peer) {
		if cfg.Backend.Type == lease.BackendHostGW || cfg.Backend.DirectRouting && rescue.OnLink(p.PublicIP) {
			p.Direct = true
		}
		if p.Direct || p.MAC != (encap.MAC{}) || cfg.Backend.Type == lease.BackendUDP {
			peers = append(peers, p)
		}
	}
	for _, l := range leases {
		if l.Subnet == j.Subnet && l.Subnet6 == j.Subnet6 || l.Attrs.BackendType != cfg.Backend.Type {
			continue
		}
		if cfg.EnableIPv4 && l.Subnet.IsValid() && l.Attrs.PublicIP.IsValid() {
			add(rescue.Peer{Subnet: l.Subnet, PublicIP: l.Attrs.PublicIP, MAC: l.Attrs.MAC})
		}
		if cfg.EnableIPv6 && l.Subnet6.IsValid() && l.Attrs.PublicIPv6.IsValid() {
			add(rescue.Peer{Subnet: l.Subnet6, PublicIP: l.Attrs.PublicIPv6, MAC: l.Attrs.MAC6})
		}
	}
	return peers
}

// makeMemory has the daemon start without the store, by what the kernel's tables say. How long the lease still
// lives nobody knows here; flannel renews one an hour before its end.
func (f *finding) makeMemory(j *rescue.Journal) error {
	if f.config.EnableIPv4 && f.config.EnableIPv6 || !f.config.EnableIPv4 {
		return fmt.Errorf("%w; and of a network with IPv6 the kernel's tables do not say which two halves are one node: give what was saved with --peers-file (and --net-config-path)", f.storeErr)
	}
	attrs := func(p rescue.Peer) lease.Attrs {
		return lease.Attrs{PublicIP: p.PublicIP, BackendType: lease.BackendVXLAN, VNI: f.config.Backend.VNI, MAC: p.MAC}
	}
	mac, _ := encap.ParseMAC(j.Devices[0].Keep)
	own := lease.Lease{Key: lease.Key(j.Subnet), Subnet: j.Subnet, Expires: time.Now().Add(time.Hour),
		Attrs: attrs(rescue.Peer{PublicIP: f.iface.PublicIP, MAC: mac})}
	m := &lease.Memory{Prefix: f.flags.run.store.prefix, Config: f.raw, Lease: own, Leases: []lease.Lease{own}}
	for _, p := range f.peers {
		if p.Direct && p.MAC == (encap.MAC{}) {
			p.MAC = encap.LocalMAC([6]byte{}) // is not used, and has to be one
		}
		m.Leases = append(m.Leases, lease.Lease{Key: lease.Key(p.Subnet), Subnet: p.Subnet, Attrs: attrs(p)})
	}
	f.memory = m
	return nil
}

// remember writes down what the daemon is to start from. Where the store answers it is that, and not what an earlier daemon
// knew.
func (f *finding) remember() error {
	if f.storeErr == nil {
		return f.d.forget()
	}
	content, err := json.Marshal(f.memory)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.flags.run.stateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w; give another with --state-dir", err)
	}
	return lease.WriteMemory(filepath.Join(f.flags.run.stateDir, memoryName), content)
}

func (f *finding) plan(j *rescue.Journal) *rescue.Plan {
	p := &rescue.Plan{Journal: j, Running: f.running, Stop: f.flags.stopFlannel && len(f.running) > 0, Source: f.source, Peers: f.peers,
		TUN: f.flags.run.tunName, Port: f.config.Backend.Port, Adopted: f.adopted}
	if f.config.Backend.Type == lease.BackendHostGW {
		p.Port = 0
	}
	switch {
	case j.Lease != nil:
		p.Found = fmt.Sprintf("lease %s of %s", j.Lease.Key, f.own.Attrs)
	default:
		p.Found = "by " + j.SubnetFile
	}
	mac := ""
	if len(j.Devices) > 0 {
		mac = ", with the same VtepMAC, so that no other node has to learn anything"
		if j.NewMAC {
			mac = ", with a VtepMAC of muslin's own, which the other nodes learn from it"
		}
	}
	switch {
	case f.storeErr != nil || f.flags.run.peersFile != "":
		p.Lease = "go by the lease that this node had"
		if f.storeErr != nil {
			p.Lease += ", until etcd answers"
			p.Warnings = append(p.Warnings, "etcd: "+f.storeErr.Error())
		}
	case f.own == nil:
		p.Lease = fmt.Sprintf("take a lease for %v again, since etcd has none of this node%s", j.Subnet, mac)
	default:
		p.Lease = "take the lease over and keep it" + mac
	}
	if f.flags.newMAC {
		p.Warnings = append(p.Warnings, "with --new-mac packets from other nodes are lost until they have the new one")
	}
	return p
}
