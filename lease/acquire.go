package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ErrExhausted says that every subnet of the network is taken.
var ErrExhausted = errors.New("every subnet is taken")

// candidates is how many free subnets flannel collects before it picks one at random.
const candidates = 100

// WaitConfig returns the network's config and the bytes it was read from, as soon as the store has one:
// it looks every second, and says so once and then every minute. A store that does not answer is waited
// for in the same way. A config that breaks a rule is an error at once.
func WaitConfig(ctx context.Context, store Store, log *slog.Logger) (*Config, []byte, error) {
	var said time.Time
	for {
		raw, _, err := store.Config(ctx)
		switch {
		case err == nil:
			c, err := ParseConfig(raw)
			return c, raw, err
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case errors.Is(err, ErrDenied):
			return nil, nil, fmt.Errorf("get network config: %w", err)
		}
		if time.Since(said) >= time.Minute {
			said = time.Now()
			if errors.Is(err, ErrNoConfig) {
				log.Warn("the store has no network config: waiting for one; set it with `muslin config set`")
			} else {
				log.Warn("cannot get the network config: trying again", "err", err)
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, nil, err
		}
	}
}

// pause returns the context's cause if that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Acquire takes a subnet by flannel's rules and remembers it for Run: the lease that has our PublicIP,
// else the previous subnet, else a free one at random. A lost race is run again with a fresh list. It
// tries for as long as the store does not answer. Errors: ErrExhausted, ErrDenied, or ctx's cause.
func (k *Keeper) Acquire(ctx context.Context) (Lease, error) {
	wait := newBackoff(watchRetryLeast, watchRetryMost)
	out := outage{log: k.log, what: "acquire a subnet"}
	contested := 0
	for {
		l, reused, err := k.tryAcquire(ctx)
		switch {
		case err == nil:
			out.over()
			k.took(l, reused)
			return l, nil
		case ctx.Err() != nil:
			return Lease{}, fmt.Errorf("acquire subnet: %w", context.Cause(ctx))
		case errors.Is(err, errContested) && contested < contestedMost:
			contested++
			if err := pause(ctx, time.Duration(1+k.cfg.Pick(100))*time.Millisecond); err != nil {
				return Lease{}, fmt.Errorf("acquire subnet: %w", err)
			}
			continue
		case errors.Is(err, ErrExists), errors.Is(err, ErrConflict), errors.Is(err, ErrNotFound):
			k.log.Debug("lost a race for a subnet: listing again", "err", err)
			// Somebody else got on, so this ends; a short random pause lets a crowd part.
			if err := pause(ctx, time.Duration(1+k.cfg.Pick(20))*time.Millisecond); err != nil {
				return Lease{}, fmt.Errorf("acquire subnet: %w", err)
			}
			continue
		case !errors.Is(err, ErrUnavailable):
			return Lease{}, fmt.Errorf("acquire subnet: %w", err)
		}
		out.begin(err)
		k.setError(err)
		if err := pause(ctx, wait.next()); err != nil {
			return Lease{}, fmt.Errorf("acquire subnet: %w", err)
		}
	}
}

// tryAcquire is one round on one list. reused says that a lease with our PublicIP was there.
func (k *Keeper) tryAcquire(ctx context.Context) (l Lease, reused bool, err error) {
	entries, _, err := k.store.List(ctx)
	if err != nil {
		return Lease{}, false, fmt.Errorf("list leases: %w", err)
	}
	network := k.cfg.Network
	var taken []Lease
	for _, e := range entries {
		// A key occupies its subnets even when its value is broken: it cannot be created.
		if l, err := ParseLease(e); network.EnableIPv4 && l.Subnet.IsValid() || network.EnableIPv6 && l.Subnet6.IsValid() {
			taken = append(taken, l)
		} else if err != nil {
			k.log.Debug("a foreign key lies among the leases", "key", clip(e.Key), "err", err)
		}
	}
	if own, ok := k.chooseOwn(taken); ok {
		ttl := k.cfg.TTL
		if own.Reserved {
			ttl = Permanent
		}
		k.log.Info("taking over the lease that has our PublicIP", "subnet", own.halves(), "from", own.Attrs.String(), "reserved", own.Reserved)
		l, err := k.put(ctx, own.halves(), ttl, own.Revision)
		return l, true, err
	}
	previous := halves{k.cfg.Previous, k.cfg.Previous6}
	for i := 0; i < len(taken); i++ {
		if t := taken[i]; k.isOurs(t.Attrs) && !t.Reserved {
			k.log.Warn("deleting a lease with our PublicIP that does not fit the network config, or shares a subnet with another one", "key", t.Key)
			if err := k.store.DeleteLease(ctx, t.Key, t.Revision); err != nil && !errors.Is(err, ErrNotFound) {
				return Lease{}, false, fmt.Errorf("delete lease %s: %w", t.Key, err)
			}
			// One half of it may fit: of a network that was given a second family, or has lost one.
			if !previous.v4.IsValid() {
				previous.v4 = t.Subnet
			}
			if !previous.v6.IsValid() {
				previous.v6 = t.Subnet6
			}
			taken = append(taken[:i], taken[i+1:]...)
			i--
		}
	}
	var want halves
	if want.v4, err = k.pick(network.v4(), previous.v4, taken, func(l Lease) netip.Prefix { return l.Subnet }); err != nil {
		return Lease{}, false, err
	}
	if want.v6, err = k.pick(network.v6(), previous.v6, taken, func(l Lease) netip.Prefix { return l.Subnet6 }); err != nil {
		return Lease{}, false, err
	}
	l, err = k.create(ctx, want)
	return l, false, err
}

// pick chooses a subnet of one family: the previous one if it fits and is free, else a free one at random. half is
// what a lease has of that family.
func (k *Keeper) pick(s subnets, previous netip.Prefix, taken []Lease, half func(Lease) netip.Prefix) (netip.Prefix, error) {
	if !s.enabled() {
		return netip.Prefix{}, nil
	}
	var all []netip.Prefix
	for _, t := range taken {
		if p := half(t); p.IsValid() {
			all = append(all, p)
		}
	}
	if s.fits(previous) && !slices.ContainsFunc(all, previous.Overlaps) {
		return previous, nil
	}
	free := s.free(all, candidates)
	if len(free) == 0 {
		err := exhausted(s, taken, half)
		if k.contested(taken) {
			err = fmt.Errorf("%w (%w)", err, errContested)
		}
		return netip.Prefix{}, err
	}
	return free[k.cfg.Pick(len(free))], nil
}

// chooseOwn finds the lease with our PublicIP to go on with. Of several it prefers the previous subnet,
// then a reservation.
func (k *Keeper) chooseOwn(taken []Lease) (Lease, bool) {
	var best Lease
	rank, found := -1, 0
	for _, t := range taken {
		if !k.isOurs(t.Attrs) {
			continue
		}
		if !k.cfg.Network.FitsLease(t.Subnet, t.Subnet6) {
			if t.Reserved {
				k.log.Warn("a reservation for our PublicIP does not fit the network config: it is left alone", "key", t.Key)
			}
			continue
		}
		if other, ok := k.rival(t, taken); ok && !t.Reserved {
			k.log.Warn("our lease shares a subnet with that of another node: taking another subnet in its place", "key", t.Key, "other", other.Key, "peer", other.Attrs.String())
			continue
		}
		found++
		r := 0
		if t.Reserved {
			r = 1
		}
		if t.Subnet.IsValid() && t.Subnet == k.cfg.Previous || t.Subnet6.IsValid() && t.Subnet6 == k.cfg.Previous6 {
			r = 2
		}
		if r > rank {
			best, rank = t, r
		}
	}
	if found > 1 {
		k.log.Warn("several leases have our PublicIP: is there another host with it?", "public_ip", k.address(k.cfg.Attrs), "leases", found, "subnet", best.halves())
	}
	return best, rank >= 0
}

func exhausted(s subnets, taken []Lease, half func(Lease) netip.Prefix) error {
	const most = 10 // holders to name
	var holders []string
	more := 0
	for _, t := range taken {
		switch {
		case !half(t).IsValid():
		case len(holders) == most:
			more++
		default:
			holders = append(holders, fmt.Sprintf("%s by %s", half(t), t.Attrs))
		}
	}
	if more > 0 {
		holders = append(holders, fmt.Sprintf("and %d more", more))
	}
	fields := "SubnetMin to SubnetMax"
	if s.first.Is6() {
		fields = "IPv6SubnetMin to IPv6SubnetMax"
	}
	return fmt.Errorf("%w: the network %s has %d of them, from %s to %s, each a /%d; held are %s. "+
		"Release one that is not used (`muslin leases release`), or widen %s in the network config",
		ErrExhausted, s.network, s.count(), s.first, s.last, s.length, strings.Join(holders, ", "), fields)
}

// put writes our own lease.
func (k *Keeper) put(ctx context.Context, subnet halves, ttl time.Duration, revision int64) (Lease, error) {
	value, err := json.Marshal(k.cfg.Attrs)
	if err != nil {
		return Lease{}, fmt.Errorf("make lease value: %w", err)
	}
	asked, key := time.Now(), LeaseKey(subnet.v4, subnet.v6)
	e, err := k.store.PutLease(ctx, key, value, ttl, revision)
	if err != nil {
		return Lease{}, fmt.Errorf("write lease %s: %w", key, err)
	}
	l := Lease{Key: e.Key, Subnet: subnet.v4, Subnet6: subnet.v6, Attrs: k.cfg.Attrs, Reserved: e.Reserved, Revision: e.Revision}
	if ttl != Permanent {
		l.Expires = asked.Add(ttl)
	}
	return l, nil
}
