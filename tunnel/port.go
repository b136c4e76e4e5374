package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// Port has several VTEPs share one underlay, each of a VXLAN network of its own, as the kernel's vxlan devices of one UDP
// port do: a datagram's VNI says whose it is (docs/decisions/shared-port.md). It receives in goroutines of its own, one for
// each queue, which call the VTEPs' inbound workers: a packet changes no thread on its way. The VTEPs send by themselves.
//
// VTEPs come (Join) and go (Member.Close) while the others' packets are carried. With one VTEP no datagram is looked at.
type Port struct {
	und     Shareable
	readers []*portReader
	gate    gate          // where readers stand while a member is paused
	begun   chan struct{} // closed when the first member is fed
	seats   atomic.Pointer[seats]

	mu      sync.Mutex // held to change what follows, and seats
	members []*Member  // as they joined
	paused  int        // how many of them
	stopped bool       // und is paused

	counting sync.Mutex // held for what follows, and the members' losses and overflow
	losses   Losses     // und's that a member has
	overflow uint64     // likewise
}

// Shareable is an Underlay that several VTEPs can have together. Its own Queues receive for all of them.
type Shareable interface {
	Underlay

	// Share is what one VTEP more needs of it.
	Share() Share
}

// Share is one VTEP's share of a Shareable. It is to be closed before that.
type Share interface {
	// Queues send, each as a queue of its own; Receive is not called. They are as many as the Shareable's.
	Queues() []UnderlayQueue

	// SetPeers is Underlay.SetPeers: wanted is what comes from a peer of any share.
	SetPeers(t *fib.Table, use func())

	// Close has this share's peers no longer wanted. Closing again changes nothing.
	Close() error
}

// NewPort makes a port that has no members. und stays the caller's to close until Run, which closes it.
func NewPort(und Shareable) *Port {
	p := &Port{und: und, begun: make(chan struct{})}
	p.gate.init()
	p.seats.Store(new(seats))
	for i, q := range und.Queues() {
		p.readers = append(p.readers, &portReader{port: p, number: i, queue: q, intake: newIntake()})
	}
	return p
}

// Join makes a member for the VTEP of a network. What comes with its VNI before that VTEP runs is dropped.
func (p *Port) Join(vni encap.VNI) (*Member, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.vni == vni.Uint32() {
			return nil, fmt.Errorf("VNI %v: another network has it on this port: give each network of a port a VNI of its own", vni)
		}
	}
	m := &Member{port: p, vni: vni.Uint32(), share: p.und.Share()}
	for _, q := range m.share.Queues() {
		m.queues = append(m.queues, memberQueue{q, m})
	}
	p.members = append(p.members, m)
	return m, nil
}

// Run receives for the members, from the time that the first one's VTEP runs, until ctx is cancelled, which gives nil, or
// until the underlay fails, which is returned and is the end for all members. Either way it closes the underlay.
func (p *Port) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		err := p.und.Close()
		p.gate.end()
		return err
	})
	select {
	case <-ctx.Done():
	case <-p.begun:
		p.gate.enter(len(p.readers))
		for _, r := range p.readers {
			g.Go(func() error { return ended(ctx, p.gate.work(r.batch)) })
		}
	}
	return g.Wait()
}

// seats are the members whose VTEPs run: immutable.
type seats struct {
	all   []*Member // as they began to run
	byVNI map[uint32]*Member
}

// reseat puts those members to use that are fed. Whom it leaves out may be called until settle.
func (p *Port) reseat(all []*Member) {
	s := &seats{all: all, byVNI: make(map[uint32]*Member, len(all))}
	for _, m := range all {
		s.byVNI[m.vni] = m
	}
	p.seats.Store(s)
}

// settle returns when every batch is carried that was under way.
func (p *Port) settle() {
	for _, r := range p.readers {
		r.carrying.Lock()
		//lint:ignore SA2001 nothing is to be done but to wait
		r.carrying.Unlock()
	}
}

// feed begins to carry datagrams to m.
func (p *Port) feed(m *Member, inbound []func(ds []Datagram)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.closed.Load() {
		return nil
	}
	for _, f := range inbound {
		m.feeds = append(m.feeds, &feed{inbound: f, ds: make([]Datagram, 0, BatchSize)})
	}
	p.reseat(append(slices.Clone(p.seats.Load().all), m))
	select {
	case <-p.begun:
	default:
		close(p.begun)
	}
	if m.resumed {
		p.release(m)
	}
	if !p.stopped {
		return nil
	}
	return p.goOn()
}

// goOn has the underlay receive again, unless a member is paused.
func (p *Port) goOn() error {
	if p.paused > 0 {
		return nil
	}
	p.stopped = false
	err := p.und.Resume()
	p.gate.set(false)
	return err
}

// pause has all stand still for m's sake.
func (p *Port) pause(m *Member) error {
	err := p.stop(m)
	if err == nil {
		p.gate.settle()
	}
	return err
}

func (p *Port) stop(m *Member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !m.paused {
		m.paused = true
		p.paused++
	}
	p.stopped, m.resumed = true, false
	p.gate.set(true)
	return p.und.Pause()
}

// resume ends what pause began, once m's VTEP runs: before that what comes would be dropped.
func (p *Port) resume(m *Member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.feeds == nil {
		m.resumed = true
		return nil
	}
	p.release(m)
	return p.goOn()
}

// release has nothing stand still for m's sake any more.
func (p *Port) release(m *Member) {
	if m.paused {
		m.paused = false
		p.paused--
	}
}

// leave takes m out of the port. When it returns nothing is carried to m any more.
func (p *Port) leave(m *Member) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.closed.Swap(true) {
		return nil
	}
	p.members = without(p.members, m)
	if m.feeds != nil {
		p.unseat(m)
	}
	var err error
	if m.paused {
		p.release(m)
		// Where none is left that would get what comes, another process may be about to have it.
		if len(p.seats.Load().all) > 0 {
			err = p.goOn()
		}
	}
	return errors.Join(err, m.share.Close())
}

// unseat ends what feed began.
func (p *Port) unseat(m *Member) {
	p.counting.Lock()
	p.count(m)
	p.reseat(without(p.seats.Load().all, m))
	p.counting.Unlock()
	p.settle()
}

// without is a copy without m.
func without(all []*Member, m *Member) []*Member {
	return slices.DeleteFunc(slices.Clone(all), func(other *Member) bool { return other == m })
}

// count gives m what the underlay has lost since the last time, if m is the member that has run longest: so each loss is
// counted once over all members. p.counting is held.
func (p *Port) count(m *Member) {
	if all := p.seats.Load().all; len(all) == 0 || all[0] != m {
		return
	}
	losses, overflow := p.und.Losses(), p.und.SendOverflow()
	m.losses = m.losses.Plus(losses.since(p.losses))
	m.overflow += overflow - p.overflow
	p.losses, p.overflow = losses, overflow
}

// portReader receives from one queue.
type portReader struct {
	port   *Port
	number int
	queue  UnderlayQueue
	intake *intake

	carrying sync.Mutex // held while a batch is carried
	fed      []*feed    // that have datagrams of the batch
}

// feed is one member's at one queue.
type feed struct {
	inbound func(ds []Datagram)
	ds      []Datagram // of the batch
}

func (f *feed) flush() {
	f.inbound(f.ds)
	f.ds = f.ds[:0]
}

// batch carries what is waiting at the socket, at least one datagram.
func (r *portReader) batch() error {
	ds, err := r.intake.receive(r.queue)
	if err != nil {
		return err
	}
	r.carry(ds)
	return nil
}

// carry gives each member what is its own, in the order in which it came.
func (r *portReader) carry(ds []Datagram) {
	r.carrying.Lock()
	defer r.carrying.Unlock()
	s := r.port.seats.Load()
	switch len(s.all) {
	case 0:
		return
	case 1: // which counts what is not its own
		s.all[0].feeds[r.number].inbound(ds)
		return
	}
	last := finder{seats: s, vni: noVNI}
	for i := range ds {
		r.unpack(&last, &ds[i])
	}
	for _, f := range r.fed {
		f.flush()
	}
	r.fed = r.fed[:0]
}

// unpack gives d to the member whose it is. Where the kernel has joined datagrams of several networks in it, each run of
// them goes to its own.
func (r *portReader) unpack(last *finder, d *Datagram) {
	if d.Size == 0 || d.Size >= len(d.Buf) || d.Truncated || whole(d.Buf, encap.VXLANHeadroom) {
		r.give(last.of(vniOf(d.Buf), d.Addr.Addr()), d)
		return
	}
	one := *d
	for rest := d.Buf; len(rest) > 0; rest = rest[len(one.Buf):] {
		vni, n := vniOf(rest[:min(d.Size, len(rest))]), d.Size
		for n < len(rest) && vniOf(rest[n:min(n+d.Size, len(rest))]) == vni {
			n += d.Size
		}
		if n > d.Size && whole(rest[:min(n, len(rest))], encap.VXLANHeadroom) {
			n = d.Size // it would be taken for one datagram, which it is not
		}
		one.Buf, one.Size = rest[:min(n, len(rest))], d.Size
		if len(one.Buf) <= one.Size {
			one.Size = 0
		}
		r.give(last.of(vni, d.Addr.Addr()), &one)
	}
}

func (r *portReader) give(m *Member, d *Datagram) {
	f := m.feeds[r.number]
	switch len(f.ds) {
	case 0:
		r.fed = append(r.fed, f)
	case BatchSize:
		f.flush()
	}
	f.ds = append(f.ds, *d)
}

// noVNI is that of a datagram that is too short to have one.
const noVNI = 1 << 24

// vniOf is a datagram's VNI (RFC 7348, section 5). Whether the rest of its header is sound, its VTEP sees.
func vniOf(b []byte) uint32 {
	if len(b) < 8 {
		return noVNI
	}
	return uint32(b[4])<<16 | uint32(b[5])<<8 | uint32(b[6])
}

// finder remembers what it found last, which the next datagram mostly shares.
type finder struct {
	seats  *seats
	vni    uint32
	member *Member // nil: nobody has vni
}

// of is the member with that VNI. What is nobody's is for one to count that knows the sender, so that its VTEP gives the
// reason: the VNI, and not the sender.
func (l *finder) of(vni uint32, sender netip.Addr) *Member {
	if vni != l.vni {
		l.vni, l.member = vni, l.seats.byVNI[vni]
	}
	if l.member != nil {
		return l.member
	}
	for _, m := range l.seats.all {
		if t := m.table.Load(); t != nil && t.KnowsOuter(sender) {
			return m
		}
	}
	return l.seats.all[0]
}
