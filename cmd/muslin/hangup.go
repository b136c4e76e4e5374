package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SIGHUP says one of two things: that the terminal is gone, which ends a program that was started there unless nohup(1)
// was asked to see to that; or, from a person or systemd, that the settings are to be read again. A daemon has no
// terminal, so that to it the signal never means the first. Which of the two it is can be seen: a process whose terminal
// is gone cannot open /dev/tty any more.

// hangups is what becomes of the signal.
type hangups struct {
	signals  chan os.Signal
	terminal bool // there was one at the start
	immune   bool // under nohup
}

// takeHangups has the signal come here instead of ending the process.
func takeHangups() *hangups {
	h := &hangups{signals: make(chan os.Signal, 1), terminal: hasTerminal(), immune: hangupsIgnored}
	signal.Ignore(syscall.SIGHUP) // so that nobody else is told any more
	signal.Notify(h.signals, syscall.SIGHUP)
	return h
}

// hangupsIgnored says that the process was started with SIGHUP ignored, as under nohup.
var hangupsIgnored = signal.Ignored(syscall.SIGHUP)

// run calls reload when it is asked for and gone when the terminal is gone, until ctx ends.
func (h *hangups) run(ctx context.Context, reload, gone func()) {
	defer signal.Stop(h.signals)
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.signals:
		}
		if h.terminal && !h.immune && terminalGone() {
			gone()
			return
		}
		reload()
	}
}

// terminalGone looks for a while: the kernel tells the session's leader first (tty_signal_session_leader in
// drivers/tty/tty_jobctrl.c), which tells us.
func terminalGone() bool {
	for range 10 {
		if !hasTerminal() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func hasTerminal() bool {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// nothingToReload is what a daemon with one network says.
func nothingToReload(log *slog.Logger) {
	log.Warn("SIGHUP: there is nothing to read again without --config; a running daemon is replaced by `muslin run --replace`, under systemd by `systemctl reload`")
}
