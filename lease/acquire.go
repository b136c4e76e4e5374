package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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
	for {
		l, reused, err := k.tryAcquire(ctx)
		switch {
		case err == nil:
			out.over()
			k.took(l, reused)
			return l, nil
		case ctx.Err() != nil:
			return Lease{}, fmt.Errorf("acquire subnet: %w", context.Cause(ctx))
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
	var taken []Lease
	for _, e := range entries {
		// A key occupies its subnet even when its value is broken: it cannot be created.
		if l, err := ParseLease(e); l.Subnet.IsValid() {
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
		k.log.Info("taking over the lease that has our PublicIP", "subnet", own.Subnet, "from", own.Attrs.String(), "reserved", own.Reserved)
		l, err := k.put(ctx, own.Subnet, ttl, own.Revision)
		return l, true, err
	}
	previous := k.cfg.Previous
	for i := 0; i < len(taken); i++ {
		if t := taken[i]; t.Attrs.PublicIP == k.cfg.Attrs.PublicIP && !t.Reserved {
			k.log.Warn("deleting a lease with our PublicIP that does not fit the network config", "key", t.Key)
			if err := k.store.DeleteLease(ctx, t.Key, t.Revision); err != nil && !errors.Is(err, ErrNotFound) {
				return Lease{}, false, fmt.Errorf("delete lease %s: %w", t.Key, err)
			}
			if !previous.IsValid() {
				previous = t.Subnet // a dual-stack lease may leave an IPv4 subnet that fits
			}
			taken = append(taken[:i], taken[i+1:]...)
			i--
		}
	}
	if k.cfg.Network.Fits(previous) && !overlapsAny(taken, previous) {
		l, err := k.put(ctx, previous, k.cfg.TTL, Absent)
		return l, false, err
	}
	free := k.cfg.Network.freeSubnets(taken, candidates)
	if len(free) == 0 {
		return Lease{}, false, exhausted(k.cfg.Network, taken)
	}
	l, err = k.put(ctx, free[k.cfg.Pick(len(free))], k.cfg.TTL, Absent)
	return l, false, err
}

// chooseOwn finds the lease with our PublicIP to go on with. Of several it prefers the previous subnet,
// then a reservation.
func (k *Keeper) chooseOwn(taken []Lease) (Lease, bool) {
	var best Lease
	rank, found := -1, 0
	for _, t := range taken {
		if t.Attrs.PublicIP != k.cfg.Attrs.PublicIP {
			continue
		}
		if !k.cfg.Network.Fits(t.Subnet) || t.Subnet6.IsValid() {
			if t.Reserved {
				k.log.Warn("a reservation for our PublicIP does not fit the network config: it is left alone", "key", t.Key)
			}
			continue
		}
		found++
		r := 0
		if t.Reserved {
			r = 1
		}
		if t.Subnet == k.cfg.Previous {
			r = 2
		}
		if r > rank {
			best, rank = t, r
		}
	}
	if found > 1 {
		k.log.Warn("several leases have our PublicIP: is there another host with it?", "public_ip", k.cfg.Attrs.PublicIP, "leases", found, "subnet", best.Subnet)
	}
	return best, rank >= 0
}

func overlapsAny(taken []Lease, subnet netip.Prefix) bool {
	for _, t := range taken {
		if t.Subnet.Overlaps(subnet) {
			return true
		}
	}
	return false
}

// freeSubnets returns the first free subnets, at most so many, in ascending order.
func (c *Config) freeSubnets(taken []Lease, most int) []netip.Prefix {
	// Every taken subnet, of whatever length, as the range of the numbers of ours that it covers.
	count := c.Subnets()
	size := uint64(1) << (32 - c.SubnetLen)
	first := ipv4Number(c.SubnetMin)
	used := make(map[int]bool)
	for _, t := range taken {
		from := ipv4Number(t.Subnet.Addr())
		to := from + uint64(1)<<(32-t.Subnet.Bits()) - 1
		if to < first || from >= first+size*uint64(count) {
			continue
		}
		lo := (max(from, first) - first) / size
		hi := min((to-first)/size, uint64(count-1))
		for i := lo; i <= hi; i++ {
			used[int(i)] = true
		}
	}
	var free []netip.Prefix
	for i, p := 0, netip.PrefixFrom(c.SubnetMin, c.SubnetLen); i < count && len(free) < most; i, p = i+1, nextSubnet(p) {
		if !used[i] {
			free = append(free, p)
		}
	}
	return free
}

func exhausted(c *Config, taken []Lease) error {
	const most = 10 // holders to name
	var holders []string
	for _, t := range taken {
		if len(holders) == most {
			holders = append(holders, fmt.Sprintf("and %d more", len(taken)-most))
			break
		}
		holders = append(holders, fmt.Sprintf("%s by %s", t.Subnet, t.Attrs))
	}
	return fmt.Errorf("%w: the network %s has %d of them, from %s to %s, each a /%d; held are %s. "+
		"Release one that is not used (`muslin leases release`), or widen SubnetMin to SubnetMax in the network config",
		ErrExhausted, c.Network, c.Subnets(), c.SubnetMin, c.SubnetMax, c.SubnetLen, strings.Join(holders, ", "))
}

// put writes our own lease.
func (k *Keeper) put(ctx context.Context, subnet netip.Prefix, ttl time.Duration, revision int64) (Lease, error) {
	value, err := json.Marshal(k.cfg.Attrs)
	if err != nil {
		return Lease{}, fmt.Errorf("make lease value: %w", err)
	}
	asked := time.Now()
	e, err := k.store.PutLease(ctx, Key(subnet), value, ttl, revision)
	if err != nil {
		return Lease{}, fmt.Errorf("write lease %s: %w", Key(subnet), err)
	}
	l := Lease{Key: e.Key, Subnet: subnet, Attrs: k.cfg.Attrs, Reserved: e.Reserved, Revision: e.Revision}
	if ttl != Permanent {
		l.Expires = asked.Add(ttl)
	}
	return l, nil
}
