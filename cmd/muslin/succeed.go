package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"muslin/tunnel/handover"
)

// begin makes this daemon the only one in its place. What waits for that (whenAlone) starts.
func (d *daemon) begin() error {
	d.control.SetUnlinkOnClose(true)
	if err := writePID(d.lock); err != nil {
		return fmt.Errorf("write our pid into the state directory's lock: %w", err)
	}
	close(d.alone)
	return nil
}

// whenAlone is a task that starts when no other daemon is in our place any more.
func (d *daemon) whenAlone(t task) task {
	return func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-d.alone:
		}
		return t(ctx)
	}
}

// isAlone reports whether begin was called.
func (d *daemon) isAlone() bool {
	select {
	case <-d.alone:
		return true
	default:
		return false
	}
}

// succeed takes the place of the daemon that runs there, when all of ours is ready to start: its packets between
// two batches, then its store. When that fails, everything of ours stands still again, and it goes on.
func (r *running) succeed(ctx context.Context) error {
	from := r.d.place.from
	// The workers are ready as soon as they wait.
	if err := r.carrier.pause(); err != nil {
		return err
	}
	err := from.Take(ctx, func(part string, changed json.RawMessage) error {
		if part == handover.Store {
			if err := r.src.embedded.start(ctx); err != nil {
				return errors.Join(err, r.carrier.pause())
			}
			return nil
		}
		if r.member.keeper != nil {
			l := r.src.memory.Lease
			if h := new(handed); changed != nil {
				if err := json.Unmarshal(changed, h); err != nil {
					return fmt.Errorf("what has changed of the lease makes no sense: %w", err)
				}
				l = h.apply(l)
			}
			r.member.keeper.Remember(l, false)
		}
		return r.carrier.resume()
	})
	if err != nil {
		return fmt.Errorf("--replace: the running daemon stays: %w", errors.Join(err, r.carrier.pause()))
	}
	r.d.log.Info("took the place of the running daemon", "its_version", from.Offer.Version, "version", buildVersion())
	r.carrier.keep(false)
	return r.d.begin()
}
