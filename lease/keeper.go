package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

var (
	// ErrSubnetLost says that another node holds our subnet now.
	ErrSubnetLost = errors.New("another node holds our subnet")
	// ErrPublicIPInUse says that a live host with our PublicIP was there before us.
	ErrPublicIPInUse = errors.New("another host uses our PublicIP")
)

const (
	// newcomer is how long a keeper that took over an existing lease yields to an incumbent. It covers
	// an incumbent's longest back-off, defendMost, with room for a slow store: else a newcomer that is
	// started again and again would win in the end.
	newcomer = 30 * time.Second

	defendLeast = time.Second // back-off between write-backs of our lease
	defendMost  = 10 * time.Second

	complainEvery = time.Minute // how often a conflict that lasts is logged

	renewRetryLeast = time.Second // back-off between tries to write to a store in trouble
	renewRetryMost  = time.Minute

	// calm is how long without a foreign write until a conflict counts as over. More than defendMost,
	// or a conflict would end between two of its rounds.
	calm = 5 * time.Minute
)

// KeeperConfig says what a Keeper keeps.
type KeeperConfig struct {
	Store   Store
	Feed    *Feed // what tells of our key, where others follow the leases as well; Acquire comes before its Run
	Network *Config
	Attrs   Attrs            // of our lease; PublicIP, PublicIPv6 and what the backend needs, for each family that is enabled
	TTL     time.Duration    // for which the lease lives if it is not renewed; 0 means TTL
	Margin  time.Duration    // before expiry at which the lease is renewed; 0 means one hour
	Pick    func(n int) int  // a random number below n; nil means math/rand's
	Logger  *slog.Logger     // nil means slog.Default
	Changed func(KeepStatus) // optional: called from Acquire and Run whenever the status changed

	Previous, Previous6 netip.Prefix // the subnets that the subnet file names, each may be zero

	// Beside says that another program of this host may keep the same lease, as a flanneld does whose data path is ours
	// (`muslin rescue`). What it writes is no sign of another host: not if it is what we write, and not when we are new.
	Beside bool
}

// KeepStatus is what a Keeper can tell about itself.
type KeepStatus struct {
	Lease     Lease
	Conflict  string // a sentence while somebody else writes our lease, or has a lease for a subnet of ours; else ""
	LastError string // of the last thing that went wrong, "" once it works again
}

// Keeper gets our lease and keeps it: it renews it in time, takes it again when somebody deletes it, and
// tells an impostor from a successor. First Acquire, or Remember, then Run, which may be called again.
type Keeper struct {
	cfg   KeeperConfig
	store Store
	feed  *Feed // nil: cfg.Feed, which others run
	seen  inbox
	log   *slog.Logger

	mu     sync.Mutex
	status KeepStatus
	rivals map[string]string // keys that share a subnet with ours, and a sentence about each

	// Used by Acquire, and after it by Run's tending goroutine alone.
	reusedAt   time.Time // when an existing lease was taken over; zero: it is of our own making
	next       time.Time // when to write
	expect     int64     // the revision that the next write replaces; Absent to create
	judged     int64     // the store's revision that we have judged up to: older events are old news
	unsure     bool      // a write of ours failed without saying whether it was done
	remembered bool      // our lease comes from before we were away, and was not seen in the store since
	defend     *backoff
	defending  bool // the next write takes back what somebody else wrote
	retry      *backoff
	conflictAt time.Time // of the last foreign write; zero: no conflict
	complained time.Time
	trouble    outage
}

// NewKeeper checks what it is given.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Margin == 0 {
		cfg.Margin = time.Hour
	}
	if cfg.TTL == 0 {
		cfg.TTL = TTL
	}
	if cfg.Margin <= 0 || cfg.Margin >= cfg.TTL {
		return nil, fmt.Errorf("subnet lease renew margin %s: want less than the %s that a lease lives", cfg.Margin, cfg.TTL)
	}
	if cfg.Network == nil {
		return nil, errors.New("keep lease: no network config")
	}
	if cfg.Network.EnableIPv4 && !cfg.Attrs.PublicIP.Is4() {
		return nil, fmt.Errorf("keep lease: PublicIP %s is not an IPv4 address: give one with --public-ip", cfg.Attrs.PublicIP)
	}
	if ip := cfg.Attrs.PublicIPv6; cfg.Network.EnableIPv6 && (!ip.Is6() || ip.Is4In6()) {
		return nil, fmt.Errorf("keep lease: PublicIPv6 %s is not an IPv6 address: give one with --public-ipv6", ip)
	}
	if cfg.Pick == nil {
		cfg.Pick = rand.IntN
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	k := &Keeper{
		cfg: cfg, store: cfg.Store, log: cfg.Logger,
		seen:    newInbox(),
		defend:  newBackoff(defendLeast, defendMost),
		retry:   newBackoff(renewRetryLeast, min(renewRetryMost, cfg.Margin/4)),
		trouble: outage{log: cfg.Logger, what: "write our lease"},
	}
	feed := cfg.Feed
	if feed == nil {
		k.feed = NewFeed(cfg.Store, cfg.Logger)
		feed = k.feed
	}
	// Whether the store answers is the Watcher's to report, for all.
	feed.add(reader{listed: k.listed, changed: k.changed, health: func(error) {}})
	return k, nil
}

// Status may be called from anywhere.
func (k *Keeper) Status() KeepStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.told()
}

func (k *Keeper) update(change func(*KeepStatus)) {
	k.mu.Lock()
	change(&k.status)
	now := k.told()
	k.mu.Unlock()
	if k.cfg.Changed != nil {
		k.cfg.Changed(now)
	}
}

func (k *Keeper) setError(err error) {
	k.update(func(s *KeepStatus) { s.LastError = err.Error() })
}

// took makes l our lease, just acquired.
func (k *Keeper) took(l Lease, reused bool) {
	k.reusedAt = time.Time{}
	if reused {
		k.reusedAt = time.Now()
	}
	k.wrote(l)
}

// wrote notes our own write. Nothing older than it counts any more, whatever revision was seen before:
// that was of a store since set back.
func (k *Keeper) wrote(l Lease) {
	k.judged = l.Revision
	k.holds(l)
}

// holds records our lease as the store has it now, and when to renew it.
func (k *Keeper) holds(l Lease) {
	k.update(func(s *KeepStatus) { s.Lease, s.LastError = l, "" })
	k.expect, k.defending, k.unsure, k.remembered = l.Revision, false, false, false
	k.next = time.Time{} // a reservation needs no renewal
	if !l.Reserved {
		k.next = l.Expires.Add(-k.cfg.Margin)
	}
}

// Run keeps the lease until ctx ends, then leaves it in the store and returns nil. It acquires one if
// that was not done. A store that does not answer never ends it. ErrSubnetLost and ErrPublicIPInUse do:
// the subnet is no longer ours to use.
func (k *Keeper) Run(ctx context.Context) error {
	if k.Status().Lease.Key == "" {
		if _, err := k.Acquire(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	if k.feed != nil {
		g.Go(func() error { return k.feed.Run(ctx) })
	}
	g.Go(func() error { return k.tend(ctx) })
	return k.outdated(g.Wait())
}

// tend is the one goroutine that judges and writes.
func (k *Keeper) tend(ctx context.Context) error {
	for {
		// A minute is often enough to notice that a conflict is over, and that a suspended machine
		// has slept through its renewal.
		wait := time.Minute
		if !k.next.IsZero() {
			wait = max(0, min(wait, time.Until(k.next)))
		}
		timer := time.NewTimer(wait)
		var err error
		select {
		case <-ctx.Done():
		case <-k.seen.news:
			for o := range k.seen.take() {
				if err = k.consider(ctx, o); err != nil {
					break
				}
			}
		case <-timer.C:
			k.settle()
			if !k.next.IsZero() && !time.Now().Before(k.next) {
				err = k.write(ctx)
			}
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write renews, defends or takes again: all are one conditional write.
func (k *Keeper) write(ctx context.Context) error {
	ours := k.Status().Lease
	ttl := k.cfg.TTL
	if ours.Reserved {
		ttl = Permanent
	}
	l, err := k.put(ctx, ours.halves(), ttl, k.expect)
	if err == nil && k.expect == Absent {
		if err := k.yield(ctx, l); err != nil {
			return err
		}
	}
	switch {
	case err == nil:
		if k.expect == Absent {
			k.log.Info("we hold our subnet again", "subnet", l.halves())
		} else {
			k.log.Debug("renewed our lease", "subnet", l.halves(), "expires", l.Expires)
		}
		k.retry.reset()
		k.trouble.over()
		k.wrote(l)
		return nil
	case errors.Is(err, ErrExists), errors.Is(err, ErrConflict):
		// Somebody was there between what we saw and now.
		return k.look(ctx)
	}
	k.unsure = true
	k.putOff(ctx, err)
	return nil
}

// look judges a list that is surely newer than our last write. After a write that found another revision
// than expected, the next try is never further away than the back-off.
func (k *Keeper) look(ctx context.Context) error {
	entries, revision, err := k.store.List(ctx)
	if err != nil {
		k.putOff(ctx, err)
		return nil
	}
	k.trouble.over()
	if revision < k.judged {
		k.log.Warn("the store's history went back: it was restored from an older copy, or made anew", "revision", revision, "seen", k.judged)
	}
	if k.expect == Absent || !k.next.IsZero() && !time.Now().Before(k.next) {
		k.next = time.Now().Add(k.retry.next()) // unless judge knows better
	}
	return k.judge(ctx, observe(entries, k.Status().Lease.Key, revision))
}

// putOff notes a failed try and when to try again.
func (k *Keeper) putOff(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	k.trouble.begin(err)
	k.setError(err)
	k.next = time.Now().Add(k.retry.next())
}
