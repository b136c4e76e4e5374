//go:build linux

package compare

import (
	"context"
	"fmt"
	"time"

	"muslin/bench/lab"
)

// lookEvery is how often until asks.
const lookEvery = 10 * time.Millisecond

// pause is a moment between two looks at something that will change.
func pause(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// until asks again and again until done reports true. That the daemon ends, or ctx, is an error with the
// daemon's log.
func until(ctx context.Context, daemon *lab.Proc, what string, done func() (bool, error)) error {
	for {
		ended := !daemon.Running()
		if ok, err := done(); ok || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %s of %s: %w; its log:\n%s", what, daemon.Name, context.Cause(ctx), daemon.Output())
		}
		if ended {
			return fmt.Errorf("%s ended without %s; its log:\n%s", daemon.Name, what, daemon.Output())
		}
		pause(ctx, lookEvery)
	}
}
