package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

func newCleanupCommand() *cobra.Command {
	var control, stateDir string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a killed daemon left in this host",
		Long: `cleanup puts the host back as it was before a daemon that was killed and could not do it itself:
routes, the TUN device, firewall rules, kernel switches, the control socket. The lease, the VtepMAC and the embedded etcd's data
stay, so that the next "muslin run" is the same node again. It refuses while a daemon runs.`,
		Example: "  muslin cleanup",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if p := kernel.NetAdmin(); p.Answer == kernel.No {
				return &kernel.NotPrivilegedError{Probe: p}
			}
			if _, err := askStatus(cmd.Context(), control); err == nil {
				return fmt.Errorf("a daemon runs behind %s: stop it first, it cleans up after itself", control)
			}
			lock, err := lockState(stateDir)
			if err != nil {
				return fmt.Errorf("%w: stop it first, it cleans up after itself", err)
			}
			defer lock.Close()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			done, err := host.Cleanup(stateDir, log)
			more, err6 := host.Cleanup(filepath.Join(stateDir, stateIPv6), log)
			done, err = append(done, more...), errors.Join(err, err6)
			if removed, socketErr := removeDeadControl(control, dialControl(control)); removed {
				done = append(done, "removed the control socket "+control)
			} else {
				err = errors.Join(err, socketErr)
			}
			for _, what := range done {
				fmt.Fprintln(cmd.OutOrStdout(), what)
			}
			if err == nil && len(done) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to clean up")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&control, "control", defaultControl, "unix `socket` of the daemon")
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "`directory` of the daemon's journal")
	return cmd
}
