package main

import (
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/text"
	"muslin/cmd/muslin/top"
)

func newTopCommand() *cobra.Command {
	var output string
	var who asked
	var once bool
	var o top.Options
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch peers, rates, round trips and drops live",
		Long: `top shows the running daemon live: this node, its peers with packets and bits a second, round trip, loss, state and
path MTU, what is dropped and why, the queues, the features. What is down comes first, then what is busiest.
Keys sort, filter and pause; ? lists them. While it looks on, the daemon measures its peers each second.

It asks once in an interval, and goes on when the daemon is replaced, started anew or away. Of thousands of peers it
asks for those on the screen each time, and for all of them each few seconds.

With --once it prints, as text or JSON, what it sees in one interval. The JSON's fields are listed in docs/top.md.
With NO_COLOR set there are no colours.`,
		Example: `  muslin top
  muslin top --sort tx --interval 5s
  muslin top --once --filter down
  muslin top --once --output json | jq '.peers[] | select(.loss > 0) | .public_ip'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(text.CheckOutput(output), o.Check()); err != nil {
				return err
			}
			o.Network = who.net
			source := top.Socket(who.socket)
			if !once {
				if output != "text" {
					return errors.New("--output is for --once: add it, or leave --output out")
				}
				return top.Run(cmd.Context(), source, o, os.Stdin, os.Stdout)
			}
			look, err := top.Once(cmd.Context(), source, o)
			if err != nil {
				return err
			}
			if output == "json" {
				return text.JSON(cmd.OutOrStdout(), look.Report())
			}
			return look.Print(cmd.OutOrStdout())
		},
	}
	who.register(cmd.Flags(), "the first, and key n for the next")
	cmd.Flags().DurationVar(&o.Interval, "interval", time.Second, "`time` from one look to the next")
	cmd.Flags().StringVar(&o.Sort, "sort", "", "`column` to sort the peers by (default state)")
	cmd.Flags().StringVar(&o.Filter, "filter", "", "show only peers with these `words` in them, or the one that holds an address")
	cmd.Flags().BoolVar(&once, "once", false, "print once, with the rates over one interval, and end")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json, with --once")
	return cmd
}
