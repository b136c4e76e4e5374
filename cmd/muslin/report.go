package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"muslin/tunnel"
)

// reportEvery is how often new drops are written to the log: nothing is logged per packet.
const reportEvery = 30 * time.Second

// reportDrops logs which drop reasons have grown, until ctx ends.
func reportDrops(ctx context.Context, log *slog.Logger, c carrier) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	before := map[string]uint64{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, _ := c.counts()
		for _, reason := range slices.Sorted(maps.Keys(now)) {
			if now[reason] <= before[reason] { // a kernel's counter may wrap
				continue
			}
			attrs := []any{"reason", reason, "new", now[reason] - before[reason], "total", now[reason], "means", tunnel.ExplainDrop(reason)}
			if err := c.lastSendError(); err != nil && reason == tunnel.DropSendFailed.String() {
				attrs = append(attrs, "err", err)
			}
			log.Warn("packets dropped", attrs...)
		}
		before = now
	}
}

// notifySystemd tells systemd that the service is ready, feeds its watchdog, and says when it stops. It
// does nothing where there is no systemd. goesOn reports whether the service goes on without this process.
func notifySystemd(ctx context.Context, log *slog.Logger, goesOn func() bool) error {
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		log.Warn("systemd was not told that we are ready", "err", err)
	}
	defer func() {
		if !goesOn() {
			systemd.SdNotify(false, systemd.SdNotifyStopping)
		}
	}()
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog is not fed", "err", err)
	}
	if err != nil || interval == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if _, err := systemd.SdNotify(false, systemd.SdNotifyWatchdog); err != nil {
				log.Warn("systemd's watchdog is not fed", "err", err)
			}
		}
	}
}
