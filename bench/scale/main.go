package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	cmd := &cobra.Command{
		Use:           "scale",
		Short:         "Make the load of many nodes on one etcd",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(newLoadCommand(), newFleetCommand())
	cmd.SetArgs(args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cmd.ExecuteContext(ctx)
}
