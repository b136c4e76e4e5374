package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"

	"github.com/spf13/cobra"
)

// someLines is how many peers the text lists unless told otherwise: what a person reads.
const someLines = 50

func newStatusCommand() *cobra.Command {
	var output string
	var who asked
	var most int
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node, its peers, and what was dropped and why",
		Long: `status asks the running daemon: this node and its lease, the store, every peer with its traffic, the
packets that were dropped by reason, and the features that this kernel gives. Of many peers the text lists those
that were heard of last.

With --output json the fields are an interface to script against; they are listed in
docs/configuration.md.`,
		Example: `  muslin status
  muslin status --peers 0
  muslin status --output json | jq '.drops'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := text.CheckOutput(output); err != nil {
				return err
			}
			if most < 0 {
				return fmt.Errorf("--peers %d: want 0 for all, or how many to list at most", most)
			}
			var status interface {
				Print(w io.Writer, now time.Time, most int) error
			}
			status, err := control.AskNetwork(cmd.Context(), who.socket, who.net)
			if errors.Is(err, control.ErrSeveral) {
				all := new(control.Networks)
				status, err = all, control.Ask(cmd.Context(), who.socket, control.NetworksPath, all)
			}
			if err != nil {
				return err
			}
			if output == "json" {
				return text.JSON(cmd.OutOrStdout(), status)
			}
			return status.Print(cmd.OutOrStdout(), time.Now(), most)
		},
	}
	who.register(cmd.Flags(), "all of them")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().IntVar(&most, "peers", someLines, "how many peers the text lists at `most`; 0: all")
	return cmd
}
