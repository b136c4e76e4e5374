package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/host"
)

// giveBack is "rescue --undo".
func (r *rescueFlags) giveBack(cmd *cobra.Command) error {
	j, err := rescue.Read(r.run.stateDir)
	if err != nil {
		return err
	}
	if j == nil {
		fmt.Fprintf(cmd.OutOrStdout(), "nothing to undo: no rescue is under way with the state directory %s\n", r.run.stateDir)
		if r.dryRun {
			return nil
		}
		return rescue.Sweep(r.run.stateDir)
	}
	runs, err := r.daemonRuns(cmd.Context())
	if err != nil {
		return err
	}
	if j.Rebooted() {
		if !runs {
			err = j.Remove()
		}
		fmt.Fprintf(cmd.OutOrStdout(), "the host was started again since the rescue of %s, which has undone it: flanneld makes its device and routes when it starts\n", j.Since.Format(time.RFC3339))
		return err
	}
	if err := errors.Join(j.Here(), goOn(cmd.Flags(), r.run.stateDir)); err != nil {
		return err
	}
	log, err := newLogger(cmd.ErrOrStderr(), r.run.logLevel, r.run.logFormat)
	if err != nil {
		return err
	}
	store, peers, why := r.peersNow(cmd.Context(), j, log)
	if store != nil {
		defer store.Close()
	}
	if j.NewMAC && j.Lease != nil && store == nil {
		return fmt.Errorf("%w; without it the other nodes would go on sending to muslin's MAC, which is in the lease: wait until etcd answers", why)
	}
	for i, step := range j.GivingBack(runs, peers) {
		fmt.Fprintf(cmd.OutOrStdout(), "  %d. %s\n", i+1, step)
	}
	if r.dryRun {
		return nil
	}
	if err := r.confirm(cmd, "Give everything back to flannel?"); err != nil {
		return err
	}
	made, err := j.Prepare()
	if err != nil {
		return fmt.Errorf("%w; nothing was given back, and what carries packets goes on", err)
	}
	// From here on it is done to the end, which takes a moment.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx := context.WithoutCancel(cmd.Context())
	given := false
	if runs {
		free, err := askEnd(ctx, r.run.control)
		if err != nil {
			return err
		}
		// The daemon undoes its own changes meanwhile; what fails here for that is done again.
		given = free && j.Give(true, peers, log) == nil
	}
	lock, err := r.lockState()
	if err != nil {
		return err
	}
	defer lock.Close()
	if !given { // before what a daemon that was killed has left goes: its routes keep packets from the default route
		given = j.Give(true, peers, log) == nil
	}
	if err := r.clearAway(log); err != nil {
		return err
	}
	if !given {
		if err := j.Give(true, peers, log); err != nil {
			return fmt.Errorf("%w; run this again", err)
		}
	}
	var failed []error
	if j.NewMAC {
		ctx, cancel := context.WithTimeout(ctx, rescue.StorePatience)
		defer cancel()
		if err := restoreLease(ctx, store, j.Lease); err != nil {
			return fmt.Errorf("flannel has its data path again, but not its MAC in the lease: %w; run this again", err)
		}
	}
	started := false
	for _, p := range j.Stopped {
		if p.Unit != "" {
			failed, started = append(failed, p.Start(ctx)), true
		}
	}
	failed = append(failed, j.Remove())
	say := func(format string, args ...any) { fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...) }
	running, _ := r.meant(cmd.Flags(), rescue.FindFlanneld())
	for _, d := range j.Devices {
		if d.Made && slices.ContainsFunc(running, func(p rescue.Process) bool { return slices.Contains(j.Ran, p.PID) }) {
			made = append(made, d.Name)
		}
	}
	if j.Backend == lease.BackendUDP {
		say("what flannel needs for its data path is free again; with udp flanneld itself is that")
	} else {
		say("flannel has its data path again")
	}
	switch {
	case len(running) > 0 && len(made) > 0:
		say("%s has to be started again, since it goes on with the %s that was deleted: it would not reach nodes that are new", running[0], strings.Join(made, " and "))
	case len(running) > 0 || started:
	case len(j.Stopped) > 0:
		say("flanneld was stopped for the rescue: start it again, as it was (%s)", strings.Join(j.Stopped[0].Args, " "))
	default:
		say("flanneld does not run: start it, or this node's lease ends within a day, and nodes that are new stay unknown here")
	}
	return errors.Join(failed...)
}

// daemonRuns reports whether there is a daemon that answers. One that does not has to go first.
func (r *rescueFlags) daemonRuns(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := control.AskStatus(ctx, r.run.control); err == nil {
		return true, nil
	}
	if dialControl(r.run.control) != nil {
		return false, nil
	}
	pid, _ := os.ReadFile(filepath.Join(r.run.stateDir, lockName))
	return false, fmt.Errorf("the daemon behind %s (process %s) does not answer: `kill -9 %[2]s`, and run this again", r.run.control, strings.TrimSpace(string(pid)))
}

// peersNow are the other nodes as the store has them, or as the rescue's daemon knew them last, or as they were before.
func (r *rescueFlags) peersNow(ctx context.Context, j *rescue.Journal, log *slog.Logger) (*etcd.Store, rescue.Peers, error) {
	if r.run.peersFile != "" {
		return nil, j.Peers, errors.New("there is no etcd (--peers-file)")
	}
	ctx, cancel := context.WithTimeout(ctx, rescue.StorePatience)
	defer cancel()
	store, err := r.run.store.connect(ctx, log)
	if err == nil {
		var peers rescue.Peers
		if peers, err = rescue.PeersIn(ctx, store, j); err == nil {
			return store, peers, nil
		}
		store.Close()
	}
	d := daemon{opts: &options{flags: &r.run}}
	m, errMemory := lease.ReadMemory(d.memoryPath())
	if m == nil || errMemory != nil || m.Prefix != r.run.store.prefix {
		return nil, j.Peers, err
	}
	cfg, errConfig := lease.ParseConfig(m.Config)
	if errConfig != nil {
		return nil, j.Peers, err
	}
	return nil, rescue.PeersOf(cfg, m.Leases, j), err
}

// lockState waits for the end of the rescue's daemon, and returns with the state directory locked.
func (r *rescueFlags) lockState() (*os.File, error) {
	var lock *os.File
	var err error
	for late := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if lock, err = lockState(r.run.stateDir); err == nil || time.Now().After(late) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: end that daemon, and run this again", err)
	}
	return lock, nil
}

// clearAway undoes what a daemon that was killed has left in the host.
func (r *rescueFlags) clearAway(log *slog.Logger) error {
	own := remains{r.run.stateDir, r.run.control}
	if host.Journaled(own.stateDir) || host.Journaled(own.stateDir6()) {
		done, err := own.undo(log)
		if err != nil {
			return err
		}
		log.Info("undid what a daemon that was killed has left", "what", done)
	}
	return nil
}

// askEnd asks the daemon to end, and to leave the rest to us; free: nothing of it has the port any more.
func askEnd(ctx context.Context, socket string) (free bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://muslin"+rescuePath, nil)
	if err != nil {
		return false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, fmt.Errorf("ask the daemon behind %s to end: %w", socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return false, fmt.Errorf("the daemon behind %s carries in nobody's place: the rescue's is another one (--control), or has ended; stop this one first", socket)
	}
	return resp.Header.Get(portFreeHeader) == "free", nil
}
