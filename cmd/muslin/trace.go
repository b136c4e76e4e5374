package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/overlay"
	"muslin/cmd/muslin/sight"
	"muslin/cmd/muslin/text"
	"muslin/cmd/muslin/trace"
)

func newTraceCommand() *cobra.Command {
	var output string
	var who asked
	var o trace.Options
	cmd := &cobra.Command{
		Use:   "trace SRC DST [icmp|tcp|udp [PORT]]",
		Short: "Follow one packet from a container here to another one, and say where it stops",
		Long: `trace sends one packet from SRC, a container of this node or this node's own address, to DST, anywhere in the overlay, and
follows it: out of the container, through this host's kernel and the daemon, over the underlay, and at the other node, if that
runs muslin, through its daemon and kernel to the container; then the answer back. It says at which stage the packet stops,
why, and what to do.

The packet is a real one, and sent from inside the container's network namespace, so that it takes the very way that the
container's own packets take: an ICMP echo request; with tcp a SYN, whose answer the kernel there resets, so that no
connection comes about; with udp a datagram without payload.

It takes root. The exit status is 0 if the packet arrived and, of icmp and tcp, was answered, and 1 if not.`,
		Example: `  muslin trace 10.244.1.2 10.244.3.7
  muslin trace 10.244.1.2 10.244.3.7 tcp 443
  muslin trace 10.244.1.2 10.244.3.7 --output json | jq -r '.stopped, .reason, .fix'`,
		Args: cobra.RangeArgs(2, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := text.CheckOutput(output); err != nil {
				return err
			}
			if err := parseTrace(&o, args); err != nil {
				return err
			}
			n, err := overlay.Ask(cmd.Context(), who.socket, who.net, o.Src.String())
			if err != nil {
				return err
			}
			t, err := trace.Run(cmd.Context(), n, o)
			if err != nil {
				return err
			}
			if output == "json" {
				err = text.JSON(cmd.OutOrStdout(), t)
			} else {
				err = t.Print(cmd.OutOrStdout())
			}
			if err == nil && !t.Good() {
				err = fmt.Errorf("the packet stops at %q", t.Stopped)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.DurationVarP(&o.Timeout, "timeout", "W", 2*time.Second, "`how long` the answer may take")
	who.register(f, "the one that SRC is in")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.SortFlags = false
	return cmd
}

// maxTraceTimeout leaves the daemons time to be asked.
const maxTraceTimeout = 8 * time.Second

func parseTrace(o *trace.Options, args []string) (err error) {
	if o.Src, err = control.ParseAddress(args[0]); err != nil {
		return err
	}
	if o.Dst, err = control.ParseAddress(args[1]); err != nil {
		return err
	}
	o.Proto = sight.ICMP
	if len(args) > 2 {
		o.Proto = args[2]
	}
	switch {
	case o.Src.Is4() != o.Dst.Is4():
		return fmt.Errorf("%s and %s: want two addresses of one family", o.Src, o.Dst)
	case o.Src == o.Dst:
		return fmt.Errorf("%s is both ends: want two addresses", o.Src)
	case o.Proto == sight.ICMP && len(args) > 3:
		return fmt.Errorf("icmp has no ports: leave %s out", args[3])
	case o.Proto != sight.ICMP && o.Proto != sight.TCP && o.Proto != sight.UDP:
		return fmt.Errorf("%q: want icmp, tcp or udp", o.Proto)
	case o.Proto != sight.ICMP && len(args) < 4:
		return fmt.Errorf("%s: to which port? `muslin trace %s %s %[1]s 80`", o.Proto, o.Src, o.Dst)
	case o.Timeout <= 0 || o.Timeout > maxTraceTimeout:
		return fmt.Errorf("--timeout %v: want more than 0, and %v at most", o.Timeout, maxTraceTimeout)
	}
	if len(args) > 3 {
		port, err := strconv.ParseUint(args[3], 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("port %q: want 1 to 65535", args[3])
		}
		o.Port = uint16(port)
	}
	return nil
}
