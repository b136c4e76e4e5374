package lease

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// A peer outlives its lease for a while where the lease was probably deleted by mistake. Its node, if it is
// alive, takes the lease again within seconds, and no packet is lost meanwhile
// (docs/decisions/vanished-leases.md).
const (
	// holdMost is how long a peer outlives its lease at most. A flanneld ends when its lease is gone, and a
	// service manager may wait for minutes until it starts it again; its kernel forwards meanwhile.
	holdMost = 5 * time.Minute

	// silence is how long a peer may not be heard of and still count as alive.
	silence = 15 * time.Second

	// holdCheck is how often it is looked who is still to be held.
	holdCheck = time.Second
)

// vanished says when a lease did so; the zero value: it has not.
type vanished struct {
	at       time.Time
	together bool   // with our own, or because the store was set back: the peer stays even if it is not heard
	spoilt   *known // what is at its key now, which cannot be read; nil: nothing
}

// lose takes an entry out, or only marks it if its peer is to outlive it, and reports which.
func (r *roster) lose(key string, together bool, now time.Time) (held bool) {
	k := r.known[key]
	switch {
	case k == nil:
		return false
	case !k.holds() || !together && !r.heard(k, now):
		r.remove(key)
		return false
	case k.vanished.at.IsZero():
		k.vanished = vanished{at: now, together: together}
		r.held[key] = k
	}
	k.vanished.spoilt = nil
	return true
}

// loseAllBut is lose for all that is not among the keys of a list.
func (r *roster) loseAllBut(there map[string]bool, together bool, now time.Time) (held int) {
	for key := range r.known {
		if !there[key] && r.lose(key, together, now) {
			held++
		}
	}
	return held
}

// spoilt reports whether an entry that cannot be read lies in place of a lease whose peer is to outlive it: as good
// as deleted, for its node writes its own back.
func (r *roster) spoilt(old, now *known) bool {
	if old == nil || !old.holds() || now.err == nil || old.vanished.at.IsZero() && !r.heard(old, time.Now()) {
		return false
	}
	r.lose(old.lease.Key, false, time.Now())
	old.vanished.spoilt = now
	r.complain(place{now, four}, aboutItself, slog.LevelWarn, "a lease cannot be read, but its node is alive: the peer stays while it is heard", "err", now.err)
	return true
}

// letGo takes out what was held for long enough.
func (r *roster) letGo(now time.Time) {
	for key, k := range r.held {
		if now.Sub(k.vanished.at) >= holdMost || !k.vanished.together && !r.heard(k, now) {
			r.remove(key)
			if spoilt := k.vanished.spoilt; spoilt != nil {
				r.take(spoilt)
			}
		}
	}
}

// supersede takes out who is held for a subnet that somebody has a lease for.
func (r *roster) supersede(subnet netip.Prefix) {
	h := r.holdings[subnet]
	if h == nil {
		return
	}
	for _, k := range slices.Clone(h.leases) {
		if r.held[k.lease.Key] == k {
			r.remove(k.lease.Key)
		}
	}
}

// heard reports whether a packet came from the holder of a lease a short time ago, by either family, or an answer to
// package pulse.
func (r *roster) heard(k *known, now time.Time) bool {
	for family := range families {
		l := k.lease.half(family)
		c := r.counters[counterKey{l.subnet, l.address}]
		if c != nil && now.Sub(time.Unix(0, max(c.LastRx.Load(), c.Answered.Load()))) < silence {
			return true
		}
	}
	return false
}

// heldUntil is when the last of those that are held now will have gone.
func (r *roster) heldUntil() time.Time {
	var last time.Time
	for _, k := range r.held {
		if end := k.vanished.at.Add(holdMost); end.After(last) {
			last = end
		}
	}
	return last
}
