package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/overlay"
	"muslin/cmd/muslin/ping"
	"muslin/cmd/muslin/text"
)

func newPingCommand() *cobra.Command {
	var output string
	var all bool
	var who asked
	var o ping.Options
	cmd := &cobra.Command{
		Use:   "ping PEER|ADDRESS",
		Short: "Ping a node or a container over the overlay: loss, times, sizes, both ways",
		Long: `ping sends ICMP echo requests over the overlay, from this node's own address there, to a container's ADDRESS or to
another node: PEER is its subnet, its PublicIP, its address in the overlay, or a name of one of these. Whatever answers pings will do, a flannel
node as well. Beside the times stands which way packets go there, as this node's daemon has it, and back, as the other one's
says, if it runs muslin.

All packets have DF. With --sweep it looks for the largest that is answered. With --all it pings every peer at once and asks
those that run muslin how they see the others: a matrix with a row for each node that tells.

It takes root: a raw socket, and a question to a peer. With host-gw nodes have no address of their own in the overlay; the one
behind their subnet's base is pinged, which their bridge has once there is a container.

The exit status is 0 if all was answered, and 1 if not. Ctrl-C prints the summary.`,
		Example: `  muslin ping 10.244.3.0/24
  muslin ping 10.244.3.7 --count 0 --interval 1s
  muslin ping 192.0.2.3 --sweep
  muslin ping --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := text.CheckOutput(output); err != nil {
				return err
			}
			if err := checkPing(&o, all, args); err != nil {
				return err
			}
			if all {
				return pingAll(cmd, &who, o, output)
			}
			words, err := overlay.Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			n, err := overlay.Ask(cmd.Context(), who.socket, who.net, words...)
			if err != nil {
				return err
			}
			to, err := n.FindAny(words)
			if err != nil {
				return err
			}
			lines := io.Writer(cmd.OutOrStdout())
			if output == "json" {
				lines = nil
			}
			r, err := ping.Ping(cmd.Context(), n, to, o, lines)
			if err != nil {
				return err
			}
			if output == "json" {
				if err := text.JSON(cmd.OutOrStdout(), r); err != nil {
					return err
				}
			}
			if !r.Answered() {
				return fmt.Errorf("%d of %d requests to %s were not answered: `muslin trace` shows where a packet ends", r.Sent-r.Received, r.Sent, r.Address)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "ping all peers, and print how the nodes reach each other")
	f.IntVarP(&o.Count, "count", "c", 5, "how many `requests` to send; 0: until Ctrl-C")
	f.DurationVarP(&o.Interval, "interval", "i", 200*time.Millisecond, "`time` from one request to the next")
	f.DurationVarP(&o.Timeout, "timeout", "W", time.Second, "`how long` an answer may take")
	f.IntVarP(&o.Size, "size", "s", 0, "`bytes` of each IP packet; 0: as ping(8) has it, 84, and 104 of IPv6")
	f.BoolVar(&o.Sweep, "sweep", false, "find the largest packet that is answered")
	who.register(f, "the one that has the peer or address")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.SortFlags = false
	return cmd
}

func checkPing(o *ping.Options, all bool, args []string) error {
	switch {
	case all && len(args) > 0:
		return fmt.Errorf("--all pings every peer: leave %s out, or --all", args[0])
	case !all && len(args) == 0:
		return errors.New("whom? Give a peer's subnet, its PublicIP, or an address in the overlay (`muslin status` lists the peers), or --all")
	case all && o.Sweep:
		return errors.New("--sweep is for one peer: leave --all out")
	case all && o.Count < 1:
		return fmt.Errorf("--count %d: with --all want 1 at least", o.Count)
	case o.Count < 0:
		return fmt.Errorf("--count %d: want how many requests to send, or 0 for no end", o.Count)
	case o.Interval < time.Millisecond:
		return fmt.Errorf("--interval %v: want 1ms at least", o.Interval)
	case o.Timeout < time.Millisecond:
		return fmt.Errorf("--timeout %v: want 1ms at least", o.Timeout)
	case o.Size < 0 || o.Size > ping.MaxSize:
		return fmt.Errorf("--size %d: want the bytes of an IP packet, %d at most, or 0", o.Size, ping.MaxSize)
	}
	return nil
}

func pingAll(cmd *cobra.Command, who *asked, o ping.Options, output string) error {
	n, err := overlay.Ask(cmd.Context(), who.socket, who.net)
	if err != nil {
		return err
	}
	m, err := ping.All(cmd.Context(), n, o)
	if err != nil {
		return err
	}
	if output == "json" {
		err = text.JSON(cmd.OutOrStdout(), m)
	} else {
		err = m.Print(cmd.OutOrStdout())
	}
	if err == nil && !m.Answered() {
		err = errors.New("not every peer answered all requests: `muslin ping PEER` shows more of one, `muslin doctor` the cause")
	}
	return err
}
