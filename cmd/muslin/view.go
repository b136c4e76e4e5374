package main

import (
	"fmt"
	"sync"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/health"
	"muslin/cmd/muslin/sight"
	"muslin/cmd/muslin/text"
	"muslin/encap"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/pulse"
)

// view is what the control socket may look at while the daemon starts, runs and stops. Parts appear as
// they come to be.
type view struct {
	mu sync.Mutex
	viewState
}

type viewState struct {
	state   string
	running bool
	since   time.Time // when running began

	iface     host.Interface
	node      *node
	kind      string
	endpoints []string
	embedded  *etcd.Embedded
	warnings  []string // the network config's

	member  *membership
	carrier carrier
	mtu     encap.InnerMTU // inner, of pods
	host    hosts
	routers routers
	prober  *pulse.Prober
	workers *health.Watch
	watcher *sight.Watcher // of packets that are traced

	kept    reasons // capabilities, once the others were given up
	keptErr error   // why not all of them were
}

func (v *view) set(change func(*viewState)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.viewState)
}

func (v *view) get() viewState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.viewState
}

func (v *view) waiting(state string) { v.set(func(s *viewState) { s.state = state }) }

func (v *view) ready() bool { return v.get().running }

// status puts together what status shows, with all peers.
func (d *daemon) status() *control.Status { return d.statusOf(nil) }

// statusOf has the peers that are wanted. Their counts are of all.
func (d *daemon) statusOf(which selection) *control.Status {
	v := d.view.get()
	if d.among != nil {
		v.kept, v.keptErr = d.among.privileges()
	}
	s := newStatus()
	s.State = v.state
	s.Store = control.StoreStatus{Kind: v.kind, Endpoints: append([]string{}, v.endpoints...)}
	for _, warning := range v.warnings {
		s.Mention(control.AboutConfig, warning)
	}
	s.Privileges = privilegeStatus(v.kept, v.keptErr)
	if v.keptErr != nil {
		s.Warn(control.AboutRights, "the daemon keeps rights that it does not need: "+v.keptErr.Error())
	}
	s.Node.PublicIP, s.Node.Iface = text.Addr(v.iface.PublicIP), v.iface.Name
	if v.node != nil {
		fillNode(&s.Node, v.node)
	}
	if v.embedded != nil && v.embedded.Err() != nil {
		s.Warn(control.AboutStore, "the embedded etcd has stopped: "+v.embedded.Err().Error())
	}
	if v.running {
		v.fillRunning(s, which)
	}
	if warning := d.warnRescued(); warning != "" {
		s.Warn(control.AboutRescue, warning)
	}
	return s
}

// newStatus is what is known before anything is.
func newStatus() *control.Status {
	s := &control.Status{
		Version:  buildVersion(),
		Store:    control.StoreStatus{Endpoints: []string{}},
		Peers:    []control.PeerStatus{},
		Counts:   control.PeerCounts{Ways: map[string]int{}},
		Drops:    map[string]uint64{},
		Skipped:  map[string]int{},
		Queues:   []control.QueueStatus{},
		Features: []kernel.Feature{},
		Warnings: []string{},
		About:    []control.About{},
		Process:  processStatus(),
	}
	if u, err := kernel.Uname(); err == nil {
		s.Kernel = u.Release
	}
	return s
}

func fillNode(n *control.NodeStatus, node *node) {
	n.Iface = node.iface.Name
	n.Backend, n.Port, n.MTU = node.backend, node.port, int(node.mtu)
	if node.backend == lease.BackendVXLAN {
		vni := node.vni.Uint32()
		n.VNI = &vni
	}
	six := node.second
	if node.six {
		six, n.PublicIP = node, ""
	} else {
		n.Network = text.Prefix(node.network)
		if n.VNI != nil {
			n.VtepMAC = node.mac.String()
		}
	}
	if six != nil {
		n.Port6 = six.port
		n.PublicIPv6, n.Network6 = text.Addr(six.iface.PublicIP), text.Prefix(six.network)
		if n.VNI != nil {
			n.VtepMAC6 = six.mac.String()
		}
	}
	n.PublicKey = node.key.String()
}

// fillRunning is what a daemon that runs can tell.
func (v *viewState) fillRunning(s *control.Status, which selection) {
	since := v.since.UTC()
	s.Since = &since
	s.Node.Subnet, s.Node.Subnet6, s.Node.MTU = text.Prefix(v.member.subnet), text.Prefix(v.member.subnet6), int(v.mtu)
	for i, n := range v.node.all() {
		if name := parts(v.carrier)[i].name(); n.six {
			s.Node.TUN6 = name
		} else {
			s.Node.TUN = name
		}
	}
	v.fillLease(s)
	s.Drops, s.Completed = v.carrier.counts()
	v.fillQueues(s)
	crowd := v.fillPeers(s, which)
	mention := func(about control.About, warning string) {
		if warning != "" {
			s.Mention(about, warning)
		}
	}
	mention(control.AboutSharedKey, v.carrier.shared())
	mention(control.AboutReversePath, v.node.warnStrict())
	mention(control.AboutHalfDown, crowd.halfDown())
	mention(crowd.about, crowd.refused())
	for _, host := range v.host {
		for _, warning := range host.Warnings() {
			s.Warn(control.AboutFirewall, warning)
		}
		for _, warning := range host.ObstacleWarnings() {
			s.Warn(control.AboutObstacle, warning)
		}
	}
	s.Features = append(s.Features, v.carrier.features()...)
	s.Features = append(s.Features, v.host[0].Features()...)
}

// fillLease is this node's lease, and the others'.
func (v *viewState) fillLease(s *control.Status) {
	if v.member.keeper != nil {
		k := v.member.keeper.Status()
		if !k.Lease.Reserved && !k.Lease.Expires.IsZero() {
			expires := k.Lease.Expires.UTC()
			s.Node.LeaseExpires = &expires
		}
		if warning := v.member.config.Warning(); warning != "" {
			s.Warn(control.AboutNewConfig, warning)
		}
		if k.LastError != "" {
			s.Warn(control.AboutLease, "own lease: "+k.LastError)
		}
		if k.Conflict != "" {
			s.Warn(control.AboutConflict, k.Conflict)
		}
	}
	w := v.member.peers.Status()
	s.Store.Healthy, s.Store.Revision, s.Store.LastError = w.Healthy, w.Revision, w.LastError
	if w.Held > 0 {
		s.Warn(control.AboutVanished, fmt.Sprintf("%d leases have vanished from the store, perhaps by mistake: their peers stay until %s at the latest; nodes that are alive take their leases again, and flanneld when it is started again", w.Held, w.HeldUntil.UTC().Format(time.TimeOnly)))
	}
	if w.Skipped != nil {
		s.Skipped = w.Skipped
	}
}

func (v *viewState) fillQueues(s *control.Status) {
	for _, q := range v.carrier.queues() {
		s.Queues = append(s.Queues, queueStatus(&q))
	}
	for _, stuck := range v.workers.Stuck() {
		for i := range s.Queues {
			q := &s.Queues[i]
			if q.Queue == stuck.Queue && q.Direction == stuck.Direction.String() && (q.Family == familyIPv6) == stuck.IPv6 {
				since := stuck.Since.UTC()
				q.StuckSince = &since
			}
		}
		s.Warn(control.AboutWorker, stuck.Describe(time.Now()))
	}
}

// table is the peers, for a daemon that runs.
func (v *viewState) table() *fib.Table {
	if t := v.carrier.table(); t != nil {
		return t
	}
	return v.member.peers.Table()
}

// QueueStatus.Family.
const (
	familyIPv4 = "ipv4"
	familyIPv6 = "ipv6"
)

func queueStatus(q *tunnel.QueueStats) control.QueueStatus {
	s := control.QueueStatus{
		Queue: q.Queue, Direction: q.Direction.String(), Family: familyIPv4, Batches: q.Batch.Total(), Packets: q.Write.Sum, Bytes: q.Bytes,
		Superpackets: q.Read.Larger(), Joined: q.Write.Larger(),
		BatchSizes: histogram(&q.Batch), ReadSegments: histogram(&q.Read), WriteSegments: histogram(&q.Write),
	}
	if q.Direction == tunnel.Inbound {
		s.Superpackets, s.Joined = s.Joined, s.Superpackets
	}
	if q.IPv6 {
		s.Family = familyIPv6
	}
	return s
}

func histogram(s *tunnel.Sizes) control.Histogram {
	h := control.Histogram{Bounds: tunnel.SizeBounds[:], Count: s.Total(), Sum: s.Sum}
	var below uint64
	for i := range h.Bounds {
		below += s.Counts[i]
		h.Counts = append(h.Counts, below)
	}
	return h
}
