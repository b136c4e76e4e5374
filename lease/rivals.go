package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// A key has both subnets of a lease in it, so that two nodes that start at once may take one IPv6 subnet beside
// two of IPv4, or the reverse: both keys can be created. flannel has nothing against that. Here the one that came
// second yields, and what cannot be mended is said. In a network of IPv4 alone, one key is one subnet, and the
// store sees to it.

// rival finds another node's lease, among these, for a subnet that ours is for as well. A reservation is none: it
// may have been made long after us.
func (k *Keeper) rival(ours Lease, all []Lease) (Lease, bool) {
	if !k.cfg.Network.EnableIPv6 {
		return Lease{}, false
	}
	i := slices.IndexFunc(all, func(l Lease) bool {
		return l.Key != ours.Key && !l.Reserved && l.halves().claims(ours.halves()) && k.address(l.Attrs).IsValid() && k.address(l.Attrs) != k.address(ours.Attrs)
	})
	if i < 0 {
		return Lease{}, false
	}
	return all[i], true
}

// errContested says that some leases share a subnet: one of each two is about to be taken back, and to leave subnets
// free.
var errContested = errors.New("two nodes are at one subnet")

// contestedMost is how often Acquire waits for that before it gives up: some 5 s.
const contestedMost = 100

func (k *Keeper) contested(all []Lease) bool {
	return slices.ContainsFunc(all, func(l Lease) bool {
		_, found := k.rival(l, all)
		return found
	})
}

// create makes our lease. If somebody was faster with one of its subnets, it is as if he had taken the key: ours is
// taken back, and the error is ErrExists.
func (k *Keeper) create(ctx context.Context, want halves) (Lease, error) {
	l, err := k.put(ctx, want, k.cfg.TTL, Absent)
	if err != nil {
		return Lease{}, err
	}
	other, lost, err := k.elder(ctx, l)
	if err == nil && lost {
		err = k.takeBack(ctx, l)
	}
	switch {
	case err != nil:
		return Lease{}, err // the next round finds our lease there, and looks again
	case lost:
		return Lease{}, fmt.Errorf("lease %s: a subnet of it is in %s of %s, which came first: %w", l.Key, other.Key, other.Attrs, ErrExists)
	}
	return l, nil
}

// yield ends our lease, which was made again after it had been lost, if somebody has taken one of its subnets
// meanwhile.
func (k *Keeper) yield(ctx context.Context, l Lease) error {
	other, lost, err := k.elder(ctx, l)
	if err != nil || !lost {
		return nil // who cannot look now hears of it from the Feed
	}
	if err := k.takeBack(ctx, l); err != nil {
		k.log.Warn("cannot take our lease back, a subnet of which is another node's; it runs out by itself", "key", l.Key, "err", err)
	}
	return fmt.Errorf("lease %s: %w: held by %s now, with lease %s. Restart to acquire another subnet", l.Key, ErrSubnetLost, other.Attrs, other.Key)
}

// elder finds a rival of the lease that we have just made who made his before.
func (k *Keeper) elder(ctx context.Context, l Lease) (other Lease, found bool, err error) {
	if !k.cfg.Network.EnableIPv6 {
		return Lease{}, false, nil
	}
	entries, _, err := k.store.List(ctx)
	if err != nil {
		return Lease{}, false, fmt.Errorf("list leases: %w", err)
	}
	var before []Lease
	for _, e := range entries {
		if t, err := ParseLease(e); err == nil && e.Revision < l.Revision {
			before = append(before, t)
		}
	}
	other, found = k.rival(l, before)
	return other, found, nil
}

func (k *Keeper) takeBack(ctx context.Context, l Lease) error {
	err := k.store.DeleteLease(ctx, l.Key, l.Revision)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete lease %s: %w", l.Key, err)
	}
	return nil
}

// listRivals and changeRival follow who else has a lease for what is ours. They are the Feed's to call.
func (k *Keeper) listRivals(entries []Entry) {
	if !k.cfg.Network.EnableIPv6 {
		return
	}
	now := make(map[string]string)
	ours := k.Status().Lease
	for _, e := range entries {
		if sentence := conflictWith(ours, e); sentence != "" {
			now[e.Key] = sentence
		}
	}
	k.setRivals(now)
}

func (k *Keeper) changeRival(e Event) {
	if !k.cfg.Network.EnableIPv6 {
		return
	}
	k.mu.Lock()
	ours, now := k.status.Lease, maps.Clone(k.rivals)
	k.mu.Unlock()
	delete(now, e.Key)
	if sentence := conflictWith(ours, e.Entry); sentence != "" && !e.Deleted {
		if now == nil {
			now = make(map[string]string)
		}
		now[e.Key] = sentence
	}
	k.setRivals(now)
}

// conflictWith is a sentence about an entry that is not ours but for a part of our subnets; "": it is not.
func conflictWith(ours Lease, e Entry) string {
	l, _ := ParseLease(e)
	shared := ours.halves().shared(l.halves())
	if ours.Key == "" || e.Key == ours.Key || !shared.IsValid() {
		return ""
	}
	return fmt.Sprintf("our subnet %s is in another lease as well, %s of %s: peers send its traffic to one of the two nodes; end that node and release its lease (`muslin leases release`), or restart this one after releasing ours",
		shared, e.Key, l.Attrs)
}

func (k *Keeper) setRivals(now map[string]string) {
	k.mu.Lock()
	before := k.rivals
	k.rivals = now
	k.mu.Unlock()
	if maps.Equal(before, now) {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(now)) {
		if before[key] != now[key] {
			k.log.Error(now[key])
		}
	}
	if len(now) == 0 {
		k.log.Info("no other lease has our subnets any more")
	}
	k.update(func(*KeepStatus) {})
}

// told is the status, with rivals where there is no other conflict. It is called with mu held.
func (k *Keeper) told() KeepStatus {
	s := k.status
	if s.Conflict == "" && len(k.rivals) > 0 {
		s.Conflict = k.rivals[slices.Min(slices.Collect(maps.Keys(k.rivals)))]
	}
	return s
}
