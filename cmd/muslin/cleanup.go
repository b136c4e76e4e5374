package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

func newCleanupCommand() *cobra.Command {
	var control, stateDir, config string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a killed daemon left in this host",
		Long: `cleanup puts the host back as it was before a daemon that was killed and could not do it itself:
routes, the TUN device, firewall rules, kernel switches, the control socket. The lease, the VtepMAC and the embedded etcd's data
stay, so that the next "muslin run" is the same node again. It refuses while a daemon runs.

What a process with several networks left goes with it: of all networks whose state is below the state directory, and
with --config of those that the file names, wherever theirs is.`,
		Example: `  muslin cleanup
  muslin cleanup --config /etc/muslin/networks.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p := kernel.NetAdmin(); p.Answer == kernel.No {
				return &kernel.NotPrivilegedError{Probe: p}
			}
			own := remains{stateDir, control}
			all, err := own.withNetworks(config)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			for _, r := range all {
				if err := r.refuse(cmd); err != nil {
					return err
				}
			}
			n := 0
			var failed []error
			for _, r := range all {
				done, err := r.cleanUp(log)
				for _, what := range done {
					fmt.Fprintln(cmd.OutOrStdout(), what)
				}
				n += len(done)
				failed = append(failed, err)
			}
			err = errors.Join(failed...)
			if err == nil && n == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to clean up")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&control, "control", defaultControl, "unix `socket` of the daemon")
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "`directory` of the daemon's journal")
	cmd.Flags().StringVar(&config, "config", "", "clean up after the networks of this `file`, too")
	return cmd
}

// remains are what one daemon may have left, or one network, or what the networks of a process have in common.
type remains struct{ stateDir, control string }

// withNetworks are those of the networks, by what is in the state directory or what the file says, and the last is what
// they have in common.
func (own remains) withNetworks(config string) ([]remains, error) {
	var all []remains
	if config != "" {
		flags, set := new(runFlags), pflag.NewFlagSet("run", pflag.ContinueOnError)
		flags.register(set)
		flags.config, flags.stateDir, flags.control = config, own.stateDir, own.control
		data, err := os.ReadFile(config)
		if err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
		networks, err := parseNetworks(&processSettings{flags: flags, set: set}, data)
		if err != nil {
			return nil, err
		}
		for _, s := range networks {
			all = append(all, remains{s.flags.stateDir, s.flags.control})
		}
	}
	found, _ := filepath.Glob(filepath.Join(own.stateDir, "*", lockName))
	for _, path := range found {
		dir := filepath.Dir(path)
		r := remains{dir, filepath.Join(filepath.Dir(own.control), filepath.Base(dir)+".sock")}
		known := false
		for _, other := range all {
			known = known || filepath.Clean(other.stateDir) == dir
		}
		if !known {
			all = append(all, r)
		}
	}
	return append(all, own), nil
}

func (r remains) stateDir6() string { return filepath.Join(r.stateDir, stateIPv6) }

// undo undoes what the journals say. The state directory is locked.
func (r remains) undo(log *slog.Logger) ([]string, error) {
	done, err := host.Cleanup(r.stateDir, log)
	more, err6 := host.Cleanup(r.stateDir6(), log)
	return append(done, more...), errors.Join(err, err6)
}

// refuse is an error while a daemon is there.
func (r remains) refuse(cmd *cobra.Command) error {
	if _, err := control.AskStatus(cmd.Context(), r.control); err == nil || errors.Is(err, control.ErrSeveral) {
		return fmt.Errorf("a daemon runs behind %s: stop it first, it cleans up after itself", r.control)
	}
	return nil
}

func (r remains) cleanUp(log *slog.Logger) ([]string, error) {
	lock, err := lockState(r.stateDir)
	if errors.Is(err, errStateInUse) {
		return nil, fmt.Errorf("%w: stop it first, it cleans up after itself", err)
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	done, err := r.undo(log)
	if removed, socketErr := removeDeadControl(r.control, dialControl(r.control)); removed {
		done = append(done, "removed the control socket "+r.control)
	} else {
		err = errors.Join(err, socketErr)
	}
	if j, _ := rescue.Read(r.stateDir); j != nil && !j.Rebooted() && j.Here() == nil {
		// The routes that drop went with the others: without them what is meant for the overlay takes the default route.
		err = errors.Join(err, j.Guard())
		done = append(done, "left what a rescue took from flannel as it is: `muslin rescue --undo` gives it back")
	}
	return done, err
}
