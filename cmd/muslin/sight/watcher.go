package sight

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"muslin/tunnel"
)

// Limits of watches.
const (
	MaxWatch = 10 * time.Second // how long one looks
	maxArmed = 16               // at once
	keepFor  = 30 * time.Second // what one has seen
)

// DataPath is a part of the data path.
type DataPath struct {
	Observe  func(tunnel.Observer, tunnel.Points) (stop func())
	Headroom int  // bytes of the framing in a datagram's payload, in front of the inner packet
	Engine   bool // datagrams are not seen
}

// Config is what a Watcher looks at.
type Config struct {
	Paths   func() []DataPath // at this moment
	Devices *Devices          // nil: devices are not looked at
}

// Watcher runs watches.
type Watcher struct {
	cfg  Config
	wake chan struct{}

	mu      sync.Mutex
	watches []*watch // the oldest first
}

// watch is one packet that is looked for.
type watch struct {
	id     string
	owner  string // who may hear of it
	packet Packet
	may    func(s *Sighting) bool // be told
	until  time.Time

	mu     sync.Mutex
	over   bool
	report Report
	stops  []func()
}

// New starts nothing: see Run.
func New(cfg Config) *Watcher { return &Watcher{cfg: cfg, wake: make(chan struct{}, 1)} }

// Close closes what it looks at devices with.
func (w *Watcher) Close() { w.cfg.Devices.close() }

// Run ends watches in time and looks at the devices, until ctx ends; then it returns nil, and nothing looks any more.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.Close()
	for {
		select {
		case <-ctx.Done():
			w.prune(time.Now().Add(2 * MaxWatch))
			return nil
		case <-w.wake:
		}
		for ctx.Err() == nil && w.prune(time.Now()) {
			w.cfg.Devices.read(50*time.Millisecond, w.atDevice)
		}
	}
}

// Arm begins to look for a packet, so long at most. may says which sightings the owner is told of; nil: all.
func (w *Watcher) Arm(owner string, p Packet, long time.Duration, may func(*Sighting) bool) (id string, err error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	if long <= 0 || long > MaxWatch {
		return "", fmt.Errorf("seconds: want more than 0, and %g at most", MaxWatch.Seconds())
	}
	var random [8]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	one := &watch{id: hex.EncodeToString(random[:]), owner: owner, packet: p, may: may, until: time.Now().Add(long)}
	one.report.Packet, one.report.Sightings = p, []Sighting{}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.armed() >= maxArmed {
		return "", errors.New("too many packets are looked for at this moment: try again in a few seconds")
	}
	for _, path := range w.cfg.Paths() {
		one.report.DataPath = true
		one.report.OuterSeen = one.report.OuterSeen || !path.Engine
		one.stops = append(one.stops, path.Observe(&eye{one, path.Headroom}, tunnel.PointInner|tunnel.PointOuter|tunnel.PointDrop))
	}
	w.watches = append(w.watches, one)
	if w.cfg.Devices != nil {
		one.report.Devices = w.cfg.Devices.look(w.packets()) == nil
	}
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
	return one.id, nil
}

func (w *Watcher) armed() (n int) {
	for _, one := range w.watches {
		if !one.over {
			n++
		}
	}
	return n
}

// packets are those that are looked for.
func (w *Watcher) packets() (all []Packet) {
	for _, one := range w.watches {
		if !one.over {
			all = append(all, one.packet)
		}
	}
	return all
}

// Seen is what a watch of this owner has seen until now. With end it has seen enough, once all that came is read.
func (w *Watcher) Seen(owner, id string, end bool) (Report, error) {
	if end {
		w.catchUp()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.watches {
		if one.id == id && one.owner == owner {
			if now := time.Now(); end && now.Before(one.until) {
				one.until = now
				w.finish(now)
			}
			one.mu.Lock()
			defer one.mu.Unlock()
			r := one.report
			r.Sightings = slices.Clone(r.Sightings)
			return r, nil
		}
	}
	return Report{}, errors.New("no such packet is looked for, or not any more")
}

// mostBehind is how long a watch's end waits for the devices to be read, on a busy machine.
const mostBehind = 500 * time.Millisecond

// catchUp waits until what came at the devices until now is read.
func (w *Watcher) catchUp() {
	if w.cfg.Devices == nil || !w.armedNow() {
		return
	}
	for now := time.Now(); w.cfg.Devices.idle.Load() < now.UnixNano() && time.Since(now) < mostBehind; {
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *Watcher) armedNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.armed() > 0
}

// prune ends what is over, forgets what is old, and says whether anything looks.
func (w *Watcher) prune(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watches = slices.DeleteFunc(w.watches, func(one *watch) bool { return now.After(one.until.Add(keepFor)) && one.over })
	w.finish(now)
	return w.armed() > 0
}

// finish ends what is over.
func (w *Watcher) finish(now time.Time) {
	ended := false
	for _, one := range w.watches {
		if !one.over && !now.Before(one.until) {
			one.over, ended = true, true
			for _, stop := range one.stops {
				stop()
			}
		}
	}
	if ended && w.cfg.Devices != nil {
		_ = w.cfg.Devices.look(w.packets()) // or else what is not wanted is thrown away here
	}
}

// atDevice takes what the packet socket gave.
func (w *Watcher) atDevice(device string, inbound bool, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.watches {
		if one.over {
			continue
		}
		if s, ok := one.packet.match(b); ok {
			s.At, s.Point, s.Device, s.Inbound = time.Now().UTC(), Device, device, inbound
			one.add(&s)
		}
	}
}

func (o *watch) add(s *Sighting) {
	if o.may != nil && !o.may(s) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.report.Sightings) >= MaxSightings {
		o.report.More++
		return
	}
	o.report.Sightings = append(o.report.Sightings, *s)
}

// eye looks at the data path. It implements tunnel.Observer.
type eye struct {
	*watch
	headroom int
}

// enough is how much of a packet is looked at, bytes: VXLAN's framing, and of IPv6 an ICMP error with the beginning of what
// it is about.
const enough = 22 + 40 + 8 + 40 + 14

// Observe implements tunnel.Observer.
func (e *eye) Observe(seen *tunnel.Seen) {
	var buf [enough]byte
	b := seen.AppendTo(buf[:0], enough)
	if seen.Outer {
		if len(b) <= e.headroom {
			return
		}
		b = b[e.headroom:]
	}
	s, ok := e.packet.match(b)
	if !ok {
		return
	}
	s.At, s.Inbound = seen.At.UTC(), seen.Inbound
	switch seen.Point {
	case tunnel.PointInner:
		s.Point = Inner
	case tunnel.PointOuter:
		s.Point, s.Bytes = Outer, seen.Len
	case tunnel.PointDrop:
		s.Point, s.Reason, s.Means = Drop, seen.Reason.String(), seen.Reason.Explain()
	}
	if seen.Outer {
		s.OuterSrc, s.OuterDst, s.outer = text(seen.Src), text(seen.Dst), seen.Src.Addr()
	}
	e.add(&s)
}

func text(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ""
	}
	return a.String()
}

// Between reports whether a sighting is of a node's own packet: from one of its subnets, to one, or in a datagram of its
// PublicIP.
func (s *Sighting) Between(publicIP netip.Addr, subnets ...netip.Prefix) bool {
	if s.outer.IsValid() && s.outer == publicIP && s.Inbound {
		return true
	}
	inner := s.src
	if s.What != Itself {
		inner = s.dst
	}
	return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.IsValid() && p.Contains(inner) })
}
