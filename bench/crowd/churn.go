package crowd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// Of ten changes one takes a lease away, one brings back one that was taken away, and the others give a node
// another PublicIP and another MAC.
const (
	tenths  = 10
	takeOf  = 1
	bringOf = 1
)

// Churned is what became of a Churn.
type Churned struct {
	Changes int // that etcd acknowledged
	Took    time.Duration
}

// Rate is in changes a second.
func (r Churned) Rate() float64 { return float64(r.Changes) / r.Took.Seconds() }

func (r Churned) String() string {
	return fmt.Sprintf("%d changes in %v, %.0f a second", r.Changes, r.Took.Round(time.Millisecond), r.Rate())
}

// Churn changes leases at a rate, in changes a second, until ctx ends, which is no error. A store that does
// not keep up is found out by Churned.Rate.
func (c *Crowd) Churn(ctx context.Context, rate int) (Churned, error) {
	if rate < 1 {
		return Churned{}, fmt.Errorf("%d changes a second: give a rate of 1 or more", rate)
	}
	began, before := time.Now(), c.Changes()
	workers := min(hands, c.cfg.Nodes)
	due := make(chan struct{})
	// What is under way at the end comes to its end.
	g, requests := errgroup.WithContext(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer close(due)
		pace(ctx, requests, rate, due)
		return nil
	})
	for w := range workers {
		// Each has nodes of its own, so that no two change one node at a time.
		g.Go(func() error { return c.work(requests, due, w, workers) })
	}
	err := g.Wait()
	return Churned{Changes: int(c.Changes() - before), Took: time.Since(began)}, err
}

// pace lets one change after the other become due, until ctx ends or a request failed. What could not be
// started in time is made up for later.
func pace(ctx, requests context.Context, rate int, due chan<- struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began, done := time.Now(), 0
	for {
		for ; done < int(time.Since(began).Seconds()*float64(rate)); done++ {
			select {
			case due <- struct{}{}:
			case <-ctx.Done():
				return
			case <-requests.Done():
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-requests.Done():
			return
		}
	}
}

// work makes the changes of one worker: nodes w, w+workers, w+2·workers and so on are its own.
func (c *Crowd) work(ctx context.Context, due <-chan struct{}, w, workers int) error {
	rng := rand.New(rand.NewPCG(uint64(w), uint64(workers)))
	mine := (c.cfg.Nodes - w + workers - 1) / workers
	var gone []int
	for range due {
		i := w + workers*rng.IntN(mine)
		what := rng.IntN(tenths)
		if what < bringOf && len(gone) > 0 {
			i, gone = gone[0], gone[1:]
		}
		if err := c.change(ctx, i, what >= tenths-takeOf); err != nil {
			return err
		}
		c.changes.Add(1)
		if c.nodes[i].grant == clientv3.NoLease {
			gone = append(gone, i)
		}
	}
	return nil
}

// change takes a node's lease away, brings it back, or changes it.
func (c *Crowd) change(ctx context.Context, i int, take bool) error {
	there := c.nodes[i].grant != clientv3.NoLease
	if take && there {
		return c.vanish(ctx, i)
	}
	c.nodes[i].generation++
	if !there {
		return c.appear(ctx, i)
	}
	return c.put(ctx, i)
}
