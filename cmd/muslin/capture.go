package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/capture"
	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
)

func newCaptureCommand() *cobra.Command {
	var who asked
	var points []string
	c := new(capture.Command)
	cmd := &cobra.Command{
		Use:   "capture [FILTER]",
		Short: "Show packets on their way, at which point they are lost, and why",
		Long: `capture shows the packets that pass this node's overlay: the inner packets between pods, the outer datagrams
between nodes, or what muslin drops, each with the reason. Without -w it writes a line for each packet; with it,
pcapng for Wireshark, tshark or tcpdump. Ctrl-C ends it, with a file that is whole.

FILTER is an expression in tcpdump's language (pcap-filter(7)), about IP packets: of --point outer about the
datagrams ("vxlan and icmp": about what is in them), of drops about either. The daemon filters before it copies. A
reader that is too slow loses copies, which the last line counts; no packet waits for it.

With --flows it writes a line of JSON for each flow instead: when it ends, and each --flow-interval while it goes on.

Where the kernel carries the packets (host-gw, the kernel's WireGuard, peers with direct routes) and on a node that
runs flannel, with whatever backend, packets are seen on the kernel's devices: there are no drops then.

docs/capture.md shows what comes out, and lists the fields of a flow.`,
		Example: `  muslin capture host 10.244.3.7
  muslin capture -w - | wireshark -k -i -
  muslin capture --point drops
  muslin capture --point inner,outer --peer 192.0.2.7 -w trouble.pcapng tcp port 443
  muslin capture --flows -w /var/log/muslin/flows --ring-files 10 --ring-size 100`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if c.Wanted.Points, err = capture.ParsePoints(points); err != nil {
				return fmt.Errorf("--point: %w", err)
			}
			if c.Wanted.Flows && cmd.Flags().Changed("point") {
				return fmt.Errorf("--flows counts inner packets and drops: leave --point out")
			}
			c.Control, c.Net, c.Version = who.socket, who.net, buildVersion()
			c.Wanted.Filter = strings.Join(args, " ")
			c.Stdout, c.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&c.File, "write", "w", "", "write to `FILE`, as pcapng (flows: as lines of JSON); - is the standard output")
	f.StringSliceVar(&points, "point", []string{"inner"}, "`where` to look: inner, outer or drops, or several of them with commas between")
	f.StringVar(&c.Peer, "peer", "", "only what one `peer` sends or gets: its PublicIP, its subnet, or an address in that")
	f.Uint64VarP(&c.Count, "count", "c", 0, "end after so many `packets`; 0: do not")
	f.DurationVar(&c.Duration, "duration", 0, "end after so long a `time`, such as 30s; 0: do not")
	f.IntVarP(&c.Wanted.Snap, "snaplen", "s", 262144, "keep so many `bytes` of each packet at most")
	f.BoolVar(&c.Wanted.Flows, "flows", false, "a line of JSON for each flow, instead of packets")
	f.DurationVar(&c.Wanted.Interval, "flow-interval", time.Minute, "with --flows: how often to write about a flow that goes on, `time`")
	f.IntVar(&c.Ring, "ring-files", 0, "with -w: write to so many `files` by turns, FILE0, FILE1 …, and overwrite the oldest")
	f.Int64Var(&c.RingSize, "ring-size", 0, "with --ring-files: how large each becomes, in `MB`")
	f.StringSliceVar(&c.SubnetFiles, "subnet-file", rescue.SubnetFiles, "on a node without a daemon: flannel's subnet `file`, which says what the overlay is; several: the first that is there")
	who.register(f, "an error names them")
	return cmd
}

// capturing answers for captures, and leaves all else to h.
func (d *daemon) capturing(h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("GET "+capture.Path, d.serveCapture)
	return mux
}

// serveCapture is the control socket's handler.
func (d *daemon) serveCapture(w http.ResponseWriter, r *http.Request) {
	v := d.view.get()
	if !v.running {
		http.Error(w, "it does not carry packets yet ("+v.state+"): try again when `muslin status` says "+control.StateRunning, http.StatusServiceUnavailable)
		return
	}
	var from []capture.Observable
	headroom := 0
	for i, n := range v.node.all() {
		if s, ok := parts(v.carrier)[i].(*sides); ok {
			from = append(from, s.vtep)
			headroom = n.framing.Headroom()
		}
	}
	if len(from) == 0 {
		http.Error(w, "the kernel carries the packets: the daemon sees none", http.StatusConflict)
		return
	}
	capture.Serve(w, r, headroom, from...)
}
