package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// refusalPause is how long a daemon that cannot start stays before it ends. The unit starts a crashed daemon
// again at once, which must not become ten refusals a second.
const refusalPause = 5 * time.Second

// ranError is the error of a daemon that has carried packets before.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

// pauseRefused waits, under systemd, before a daemon ends that could not start. The reason stands in
// `systemctl status` meanwhile.
func pauseRefused(ctx context.Context, err error) {
	if os.Getenv("NOTIFY_SOCKET") == "" || errors.As(err, new(ranError)) {
		return
	}
	// Nobody is there to be told of a failure.
	_, _ = systemd.SdNotify(false, fmt.Sprintf("STATUS=cannot start, tries again in %v: %v", refusalPause, err))
	select {
	case <-ctx.Done():
	case <-time.After(refusalPause):
	}
}
