package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"muslin/cmd/muslin/capture/filter"
	"muslin/tunnel"
)

// Path is where the control socket streams packets, to GET with the query of a Wanted. With net=NAME it is about one of
// several networks.
const Path = "/v1/capture"

// Wanted is what is to be captured.
type Wanted struct {
	Points tunnel.Points
	Filter string // package filter; empty: everything
	Snap   int    // bytes of each packet at most, of a datagram without IP and UDP header

	// Of which peers: those whose subnets, and those whose PublicIPs these are; both empty: of any, and of none.
	Subnets []netip.Prefix
	Hosts   []netip.Addr

	Flows    bool          // not packets but flows: Points are inner and drops then
	Interval time.Duration // of Flows: how often a long one is told of
}

const (
	maxSnap     = 262144 // tcpdump's
	minSnap     = 20
	minInterval = time.Second
)

var pointNames = []struct {
	name  string
	point tunnel.Points
}{{"inner", tunnel.PointInner}, {"outer", tunnel.PointOuter}, {"drops", tunnel.PointDrop}}

// ParsePoints reads names, as of --point.
func ParsePoints(names []string) (p tunnel.Points, err error) {
	for _, name := range names {
		one := tunnel.Points(0)
		for _, n := range pointNames {
			if n.name == name {
				one = n.point
			}
		}
		if one == 0 {
			return 0, fmt.Errorf("point %q: want inner, outer or drops, or several of them with commas between", name)
		}
		p |= one
	}
	if p == 0 {
		return 0, errors.New("no point: want inner, outer or drops")
	}
	return p, nil
}

// names is the opposite of ParsePoints.
func names(p tunnel.Points) (all []string) {
	for _, n := range pointNames {
		if p&n.point != 0 {
			all = append(all, n.name)
		}
	}
	return all
}

// Query is for Path.
func (w *Wanted) Query() url.Values {
	q := url.Values{"point": {strings.Join(names(w.Points), ",")}, "snaplen": {strconv.Itoa(w.Snap)}}
	if w.Filter != "" {
		q.Set("filter", w.Filter)
	}
	for _, s := range w.Subnets {
		q.Add("subnet", s.String())
	}
	for _, h := range w.Hosts {
		q.Add("host", h.String())
	}
	if w.Flows {
		q.Set("flows", w.Interval.String())
	}
	return q
}

// ParseWanted reads a query.
func ParseWanted(q url.Values) (w Wanted, err error) {
	if w.Points, err = ParsePoints(strings.Split(q.Get("point"), ",")); err != nil {
		return w, err
	}
	w.Filter, w.Snap = q.Get("filter"), maxSnap
	if s := q.Get("snaplen"); s != "" {
		if w.Snap, err = strconv.Atoi(s); err != nil {
			return w, fmt.Errorf("snaplen: %w", err)
		}
	}
	for _, s := range q["subnet"] {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return w, err
		}
		w.Subnets = append(w.Subnets, p.Masked())
	}
	for _, s := range q["host"] {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return w, err
		}
		w.Hosts = append(w.Hosts, a)
	}
	if s := q.Get("flows"); s != "" {
		w.Flows = true
		if w.Interval, err = time.ParseDuration(s); err != nil {
			return w, err
		}
	}
	return w, w.check()
}

// check says what is wrong for a person.
func (w *Wanted) check() error {
	if w.Snap < minSnap || w.Snap > maxSnap {
		return fmt.Errorf("--snaplen %d: want %d to %d bytes of each packet", w.Snap, minSnap, maxSnap)
	}
	if w.Flows && w.Interval < minInterval {
		return fmt.Errorf("--flow-interval %v: want %v at least", w.Interval, minInterval)
	}
	_, err := filter.Compile(w.Filter)
	return err
}

// ofAnyPeer reports whether no peer was named.
func (w *Wanted) ofAnyPeer() bool { return len(w.Subnets) == 0 && len(w.Hosts) == 0 }

// ofPeer reports whether a packet is of a peer that is wanted: a datagram by where it comes from or goes to, an inner
// packet by its remote address.
func (w *Wanted) ofPeer(remote netip.Addr, outer bool) bool {
	if w.ofAnyPeer() {
		return true
	}
	if outer {
		return slices.Contains(w.Hosts, remote)
	}
	return slices.ContainsFunc(w.Subnets, func(s netip.Prefix) bool { return s.Contains(remote) })
}
