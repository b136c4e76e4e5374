package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// ensureRetry is the pause between two tries while the store does not answer.
const ensureRetry = time.Second

// EnsureConfig writes the network config if the store has none, and reports whether it did. A config
// that is there and means the same is fine; one that means something else is an error, and stays. It
// tries every second for as long as the store does not answer. Errors besides those: ErrDenied, or ctx's
// cause.
func EnsureConfig(ctx context.Context, store Store, want []byte) (created bool, err error) {
	wanted, err := ParseConfig(want)
	if err != nil {
		return false, err
	}
	unsure := false // a write of ours failed without saying whether it was done
	for {
		have, _, err := store.Config(ctx)
		doing := "get"
		if errors.Is(err, ErrNoConfig) {
			doing = "write"
			err = store.PutConfig(ctx, want, Absent)
			if err == nil {
				return true, nil
			}
			if errors.Is(err, ErrExists) {
				continue // somebody was faster, or our own write was done: see what is there
			}
			unsure = true
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return false, fmt.Errorf("%s network config: %w", doing, context.Cause(ctx))
		case errors.Is(err, ErrUnavailable):
			if err := pause(ctx, ensureRetry); err != nil {
				return false, fmt.Errorf("%s network config: %w", doing, err)
			}
			continue
		default:
			return false, fmt.Errorf("%s network config: %w", doing, err)
		}
		if unsure && bytes.Equal(have, want) {
			return true, nil
		}
		present, err := ParseConfig(have)
		if err != nil {
			return false, fmt.Errorf("the store has a broken config, %s: %w: mend it with `muslin config set`", brief(have), err)
		}
		if !present.Means(wanted) {
			have, _ := HideSecret(string(have))
			want, _ := HideSecret(string(want))
			return false, fmt.Errorf("the store has another network config.\n  there:  %s\n  wanted: %s\n"+
				"It is not changed silently, because running nodes depend on it: start without --network and --backend to use it as it is, or change it with `muslin config set`", have, want)
		}
		return false, nil
	}
}

// Means reports whether both configs say the same, defaults filled in.
func (c *Config) Means(other *Config) bool {
	a, b := *c, *other
	a.Warnings, b.Warnings = nil, nil
	rawA, rawB := a.Backend.Raw, b.Backend.Raw
	a.Backend.Raw, b.Backend.Raw = nil, nil
	if !reflect.DeepEqual(a, b) {
		return false
	}
	// Of those that we carry every field has been read; of another only Type.
	return carries(a.Backend.Type) || sameJSON(rawA, rawB)
}

func sameJSON(a, b json.RawMessage) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
