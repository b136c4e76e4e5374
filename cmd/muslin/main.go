// Command muslin is a userspace overlay network: the daemon (run) and the commands around it. It wires
// the packet side (tunnel) to the lease side (lease); what starts in what order is in run.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		signals = append(signals, syscall.SIGHUP) // the terminal is gone, an ssh session dropped
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// The first signal ends the command in good order; a second one kills it.
	context.AfterFunc(ctx, stop)
	if cmd, err := newRootCommand().ExecuteContextC(ctx); err != nil {
		if status := exitStatus(0); errors.As(err, &status) {
			os.Exit(int(status))
		}
		if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
			err = errors.New("interrupted")
		}
		fmt.Fprintf(os.Stderr, "muslin: %v\n", err)
		pauseRefused(ctx, err)
		if errors.Is(err, errLeft) {
			os.Exit(exitLeft)
		}
		os.Exit(failed(cmd))
	}
}

// exitFailed is the key of a command's annotation: the status of whatever goes wrong, if it is not 1.
const exitFailed = "exit status of a failure"

// failed is the status of a command that could not do what it was told.
func failed(cmd *cobra.Command) int {
	if status, err := strconv.Atoi(cmd.Annotations[exitFailed]); err == nil {
		return status
	}
	return 1
}

func newRootCommand() *cobra.Command {
	cobra.EnableCommandSorting = false // they stand in the order of a user's need
	root := &cobra.Command{
		Use:   "muslin",
		Short: "An overlay network in userspace, compatible with flannel",
		Long: `muslin joins Linux hosts into one overlay network. Each host runs "muslin run", takes a subnet by a
lease in etcd, and carries its workloads' packets to the other hosts in VXLAN or UDP datagrams, or has the
kernel route them. It speaks flannel's lease schema and wire formats, so it can stand among stock flannel nodes.

Every flag is also an environment variable: --etcd-endpoints is MUSLIN_ETCD_ENDPOINTS, or
FLANNELD_ETCD_ENDPOINTS where that is not set. A flag wins over both.`,
		Example: `  # two hosts, without an etcd of your own:
  first#  muslin run --embedded-etcd --network 10.244.0.0/16
  second# muslin run --etcd-endpoints http://FIRST:2379

  muslin demo                         # three hosts on this machine, in network namespaces

  # when something is wrong (muslin help emergency: the page for it):
  muslin doctor                       # the cause, and the command that mends it
  muslin trace 10.244.1.2 10.244.3.7  # where a packet dies
  muslin rescue                       # take over from a flannel that is broken
  muslin status                       # this node, its peers, what was dropped and why`,
		Version:           buildVersion(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		Args:              cobra.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return flagsFromEnv(cmd.Flags(), os.LookupEnv) },
	}
	add := func(id, title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("daemon", "The daemon:", newRunCommand(), newStatusCommand(), newTopCommand(), newCleanupCommand())
	add("trouble", "When something is wrong:", newDoctorCommand(), newTraceCommand(), newPingCommand(), newRouteCommand(),
		newCaptureCommand(), newRescueCommand())
	add("store", "The store:", newLeasesCommand(), newConfigCommand())
	add("try", "To try and to measure:", newDemoCommand(), newFeaturesCommand(), newBenchCommand())
	root.AddCommand(newEmergencyTopic(), newCompletionCommand(), newVersionCommand())
	root.SetVersionTemplate(versionLine() + "\n") // muslin --version
	root.SetHelpCommand(newHelpCommand())
	root.CompletionOptions.DisableDefaultCmd = true // there is newCompletionCommand
	explainUsage(root)
	completeArguments(root)
	return root
}
