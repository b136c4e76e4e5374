package lease

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// What a Keeper does about what was seen at its key.

// consider judges what was seen, or first looks for itself.
func (k *Keeper) consider(ctx context.Context, o observation) error {
	if o.listed && !k.trouble.since.IsZero() && time.Now().Before(k.next) {
		k.next = time.Now() // the store answers again: what was put off is due
	}
	if o.listed && o.asOf < k.judged {
		// The list may merely be older than our last write. Or the store was set back.
		return k.look(ctx)
	}
	return k.judge(ctx, o)
}

// judge decides what to do about what was seen at our key. An event that is not newer than what we know
// is an echo of our own write, or old. A list that is not older than what we know is the truth: a store
// that was made anew or restored may have lost our key, or have it at any revision.
func (k *Keeper) judge(ctx context.Context, o observation) error {
	if !o.listed && o.asOf <= k.judged {
		return nil
	}
	k.judged = o.asOf
	if o.absent {
		k.missing()
		return nil
	}
	theirs, err := ParseLease(o.entry)
	same := err == nil && theirs.Attrs.Equal(k.cfg.Attrs)
	if o.entry.Revision == k.expect && (same || k.defending) {
		k.remembered = false
		return nil // what we wrote, or what we are about to write over
	}
	ours := k.Status().Lease
	// A restored store has an entry of ours from the past; only what is newer was written by somebody.
	// And that may have been us, as long as we do not know what became of a write. An operator who
	// makes the lease a reservation, or ends one, leaves the value as it is.
	written := o.entry.Revision > k.expect && !k.unsure && o.entry.Reserved == ours.Reserved
	ours.Revision, ours.Reserved = o.entry.Revision, o.entry.Reserved
	switch {
	case same && (!written || k.cfg.Beside):
		return k.adopt(ctx, ours)
	case k.address(theirs.Attrs).IsValid() && o.entry.Revision < k.expect:
		// Nobody can have written this after us. Either it was the past when we took the subnet, or it is of
		// somebody new, who found the subnet free in the past and goes when he hears of us.
		k.contest(ours, fmt.Sprintf("the store was set back to before we took our subnet: our lease %s is there as that of %s", ours.Key, theirs.Attrs))
		return nil
	case k.address(theirs.Attrs).IsValid() && !k.isOurs(theirs.Attrs):
		return fmt.Errorf("lease %s: %w: held by %s now. Restart to acquire another subnet", ours.Key, ErrSubnetLost, theirs.Attrs)
	case !k.address(theirs.Attrs).IsValid():
		k.contest(ours, fmt.Sprintf("somebody wrote what is not a lease (%v) over our lease %s", err, ours.Key))
		return nil
	}
	if k.cfg.Beside {
		k.contest(ours, fmt.Sprintf("our lease %s of %s was overwritten with %s, as by a flanneld that was started again on this host: stop it, or give everything back to it with `muslin rescue --undo`",
			ours.Key, k.cfg.Attrs, theirs.Attrs))
		return nil
	}
	if o.entry.Revision > k.expect && !k.reusedAt.IsZero() && time.Since(k.reusedAt) < newcomer {
		return fmt.Errorf("lease %s: %w: two hosts have PublicIP %s, and the other one, %s, was here before us, %s. Give this host its own address with %s",
			ours.Key, ErrPublicIPInUse, k.address(k.cfg.Attrs), theirs.Attrs, k.cfg.Attrs, k.addressFlag())
	}
	did := fmt.Sprintf("our lease %s of %s was overwritten with %s", ours.Key, k.cfg.Attrs, theirs.Attrs)
	if same {
		did = fmt.Sprintf("somebody else wrote our lease %s, with the very same %s", ours.Key, theirs.Attrs)
	}
	k.contest(ours, fmt.Sprintf("two hosts have PublicIP %s: %s; give one of the two hosts another address with %s", k.address(k.cfg.Attrs), did, k.addressFlag()))
	return nil
}

// address is what tells nodes apart: the PublicIP, as for flannel, or the PublicIPv6 where we have no other.
func (k *Keeper) address(a Attrs) netip.Addr {
	if k.cfg.Attrs.sixOnly() {
		return a.PublicIPv6
	}
	return a.PublicIP
}

func (k *Keeper) isOurs(a Attrs) bool { return k.address(a) == k.address(k.cfg.Attrs) }

func (k *Keeper) addressFlag() string {
	if k.cfg.Attrs.sixOnly() {
		return "--public-ipv6"
	}
	return "--public-ip"
}

// missing has our lease made again.
func (k *Keeper) missing() {
	if k.expect == Absent {
		return // the write is due already
	}
	ours := k.Status().Lease
	k.log.Error("our lease was deleted from the store: taking the same subnet again; traffic goes on meanwhile", "subnet", ours.halves())
	k.setError(fmt.Errorf("our lease %s was deleted from the store", ours.Key))
	k.expect, k.next = Absent, time.Now()
}

// contest has our lease, which is as somebody else wrote it, written back. That is done for an equal
// value too: it is how a newcomer learns of us.
func (k *Keeper) contest(l Lease, what string) {
	first := k.conflictAt.IsZero()
	k.conflictAt = time.Now()
	k.expect = l.Revision
	k.update(func(s *KeepStatus) { s.Conflict, s.Lease.Reserved = what, l.Reserved })
	if k.defending { // a write-back is due already, and a flood of foreign ones must not put it off
		return
	}
	delay := time.Duration(0) // the peers send to the wrong node as long as it lasts
	if !first {
		delay = k.defend.next()
	}
	k.defending, k.next = true, time.Now().Add(delay)
	if k.complained.IsZero() || time.Since(k.complained) >= complainEvery {
		k.complained = time.Now()
		k.log.Error(what, "writing_ours_back_in", delay)
	}
}

// adopt takes the store's entry as our own.
func (k *Keeper) adopt(ctx context.Context, l Lease) error {
	l.Expires = time.Time{}
	if !l.Reserved {
		left, err := k.store.TimeToLive(ctx, l.Key)
		if err != nil || left <= 0 {
			left = k.cfg.Margin // unknown: renew at once
		}
		l.Expires = time.Now().Add(left)
	}
	k.holds(l)
	return nil
}

// settle ends a conflict after a calm time.
func (k *Keeper) settle() {
	if !k.conflictAt.IsZero() && time.Since(k.conflictAt) > calm {
		k.log.Info("nobody else has written our lease for a while: the conflict is over")
		k.conflictAt, k.complained = time.Time{}, time.Time{}
		k.defend.reset()
		k.update(func(s *KeepStatus) { s.Conflict = "" })
	}
}
