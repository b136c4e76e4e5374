package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"muslin/bench/link"
	"muslin/cmd/muslin/text"
)

// benchLink is `muslin bench link`, of either side. Which addresses are measured comes from the daemon's
// status or the flags; the measuring is package link's.
type benchLink struct {
	overlayAddr  string // the serving node's, on both sides
	underlayAddr string
	port         uint16
	rate         string
	control      string

	serve bool
	limit time.Duration // of serving

	token   string
	seconds float64
	streams int
	yes     bool
	output  string

	terminal func(stream any) bool // is a person there to answer?
}

// The flags that one side alone has.
var (
	servingFlags   = []string{"for"}
	measuringFlags = []string{"token", "seconds", "streams"}
)

func newBenchLinkCommand() *cobra.Command {
	b := &benchLink{terminal: text.IsTerminal}
	cmd := &cobra.Command{
		Use:   "link [PEER]",
		Short: "Measure between two real nodes, over the overlay and beside it over the bare underlay",
		Long: `link measures from this node to another one, over the live overlay and beside it over the bare underlay:
TCP throughput and UDP loss each way, round trips, the largest packet that passes. The table shows what
the overlay costs. It is a full-path load test for after a change of the network: the exit status is 1
if anything does not work over the overlay, and the message names what.

It loads the link, so both sides have to agree. A person on the other node runs

  muslin bench link --serve

which permits it for ten minutes and prints the command to type here, with a token that nobody else has.
This side asks before it begins, unless --yes is given.

PEER is the other node's subnet, an address in it, or its PublicIP, as "muslin status" shows them. Where
no muslin daemon runs, on a stock flannel node for example, --overlay-addr and --underlay-addr say on
either side what the serving node's addresses are; the first is the base address of its subnet.

What is measured how, and the fields of --output json: docs/bench-link.md.`,
		Example: `  muslin bench link --serve                      # on the one node
  muslin bench link 10.244.15.0 --token TOKEN    # on the other

  # from a script, gently:
  muslin bench link 10.244.15.0 --token TOKEN --yes --rate 100M --seconds 1 --output json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := b.check(cmd, args); err != nil {
				return err
			}
			if b.serve {
				return b.runServe(cmd)
			}
			return b.runMeasure(cmd, args)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&b.serve, "serve", false, "permit another node to measure to this one, and print the command for it")
	f.DurationVar(&b.limit, "for", 10*time.Minute, "with --serve: how `long`")
	f.StringVar(&b.overlayAddr, "overlay-addr", "", "the serving node's `address` in the overlay (default: from the daemon)")
	f.StringVar(&b.underlayAddr, "underlay-addr", "", "the serving node's `address` in the underlay (default: from the daemon)")
	f.Uint16Var(&b.port, "port", link.DefaultPort, "TCP and UDP `port` of the serving node")
	f.StringVar(&b.rate, "rate", "0", "at most so many `bits` per second each way, such as 100M or 2.5G; 0: as fast as it goes")
	f.StringVar(&b.token, "token", "", "what --serve has printed on the other node")
	f.Float64Var(&b.seconds, "seconds", 3, "how long each measure lasts")
	f.IntVar(&b.streams, "streams", 4, "TCP streams of the measures with several; 1 leaves these out")
	f.BoolVar(&b.yes, "yes", false, "do not ask before the link is loaded")
	f.StringVarP(&b.output, "output", "o", "text", "text or json")
	f.StringVar(&b.control, "control", defaultControl, "unix `socket` of the daemon")
	return cmd
}

// check finds flags that make no sense, all at once.
func (b *benchLink) check(cmd *cobra.Command, args []string) error {
	var bad []error
	foreign, with := servingFlags, "needs --serve"
	if b.serve {
		foreign, with = measuringFlags, "belongs to the other node's command, not to --serve"
		if len(args) > 0 {
			bad = append(bad, fmt.Errorf("--serve and %q: whoever measures names this node, not this node the other; leave it out", args[0]))
		}
	}
	for _, name := range foreign {
		if cmd.Flags().Changed(name) {
			bad = append(bad, fmt.Errorf("--%s %s", name, with))
		}
	}
	if b.limit <= 0 {
		bad = append(bad, fmt.Errorf("--for %v: want a time above 0", b.limit))
	}
	if b.port == 0 {
		bad = append(bad, errors.New("--port 0: want 1 to 65535"))
	}
	if err := text.CheckOutput(b.output); err != nil {
		bad = append(bad, err)
	}
	for name, value := range map[string]string{"--overlay-addr": b.overlayAddr, "--underlay-addr": b.underlayAddr} {
		if _, err := optionalIPv4(name, value); err != nil {
			bad = append(bad, err)
		}
	}
	if rate, err := parseRate(b.rate); err != nil {
		bad = append(bad, err)
	} else if rate != 0 && rate < link.MinRate {
		bad = append(bad, fmt.Errorf("--rate %s: want at least 1M, or 0 for no limit", b.rate))
	}
	if !b.serve && len(args) == 0 && (b.overlayAddr == "" || b.underlayAddr == "") {
		bad = append(bad, errors.New("which node? Give PEER, or both --overlay-addr and --underlay-addr; --serve is for the other side"))
	}
	if !b.serve && b.token == "" {
		bad = append(bad, errors.New("no --token: run `muslin bench link --serve` on the other node; it prints this command with its token"))
	}
	return errors.Join(bad...)
}

// parseRate reads bits per second with a decimal k, M or G behind.
func parseRate(s string) (int64, error) {
	number, unit := s, 1.0
	for suffix, u := range map[string]float64{"k": 1e3, "M": 1e6, "G": 1e9} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			number, unit = n, u
		}
	}
	rate, err := strconv.ParseFloat(number, 64)
	if err != nil || !(rate >= 0) || rate*unit > math.MaxInt64/2 {
		return 0, fmt.Errorf("--rate %q: want bits per second, such as 100M or 2.5G; 0 is no limit", s)
	}
	return int64(rate * unit), nil
}

// runServe lets another node measure to this one until the time is over.
func (b *benchLink) runServe(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	overlay, underlay, listen, err := b.ownAddrs(cmd.Context())
	if err != nil {
		return err
	}
	rate, err := parseRate(b.rate)
	if err != nil {
		return err
	}
	cfg := link.ServerConfig{Token: link.NewToken(), Rate: rate, Notify: func(words string) { fmt.Fprintln(out, words) }}
	for _, addr := range []netip.Addr{overlay, listen} {
		cfg.Addrs = append(cfg.Addrs, netip.AddrPortFrom(addr, b.port))
	}
	server, err := link.Listen(cfg)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w; end what uses it, or give another --port", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%w: it is no address of this host; see `ip addr`", err)
	case err != nil:
		return err
	}
	b.explainServe(out, cfg, overlay, underlay)
	ctx, cancel := context.WithTimeout(cmd.Context(), b.limit)
	defer cancel()
	if err := server.Run(ctx); err != nil {
		return err
	}
	if n := server.Refused(); n > 0 {
		fmt.Fprintf(out, "%d connections without the token were refused\n", n)
	}
	fmt.Fprintln(out, "ended: nobody can measure to this node any more")
	return nil
}

func (b *benchLink) explainServe(out io.Writer, cfg link.ServerConfig, overlay, underlay netip.Addr) {
	speed := "as fast as they can"
	if cfg.Rate > 0 {
		speed = b.rate + " bit/s each way"
	}
	port := ""
	if b.port != link.DefaultPort {
		port = fmt.Sprintf(" --port %d", b.port)
	}
	fmt.Fprintf(out, `For %v, who has the token may send to this node and take from it, %s.
On the other node, type

  muslin bench link %s%s --token %s

or, where no muslin daemon runs,

  muslin bench link --overlay-addr %s --underlay-addr %s%s --token %s

A firewall must let in TCP and UDP port %d. Ctrl-C ends it before.
`, b.limit, speed, overlay, port, cfg.Token, overlay, underlay, port, cfg.Token, b.port)
	if listen := cfg.Addrs[1].Addr(); listen != underlay {
		fmt.Fprintf(out, "%s is no address of this host: it listens on %s, and the NAT between must pass the port on.\n", underlay, listen)
	}
	fmt.Fprintln(out)
}

// runMeasure measures to a node that serves.
func (b *benchLink) runMeasure(cmd *cobra.Command, args []string) error {
	target, err := b.target(cmd.Context(), args)
	if err != nil {
		return err
	}
	rate, err := parseRate(b.rate)
	if err != nil {
		return err
	}
	cfg := link.Config{
		Token:    b.token,
		Overlay:  netip.AddrPortFrom(target.overlay, b.port),
		Underlay: netip.AddrPortFrom(target.underlay, b.port),
		Each:     time.Duration(b.seconds * float64(time.Second)),
		Streams:  b.streams,
		Rate:     rate,
		Progress: func(words string) { fmt.Fprintf(cmd.ErrOrStderr(), "%s ...\n", words) },
	}
	if err := cfg.Check(); err != nil {
		return err
	}
	if err := b.ask(cmd, cfg, target); err != nil {
		return err
	}
	result, err := link.Measure(cmd.Context(), cfg)
	if errors.Is(err, context.Canceled) {
		return errors.New("bench link: interrupted")
	}
	if err != nil {
		return err
	}
	if local := result.Overlay.Local; target.own.IsValid() && local != "" && local != target.own.String() {
		result.Notes = append(result.Notes, fmt.Sprintf("what was measured as the overlay left from %s, not from this node's overlay address %s: see `ip route get %s`", local, target.own, target.overlay))
	}
	if err := b.print(cmd.OutOrStdout(), result); err != nil {
		return err
	}
	return verdict(result)
}

// ask lets a person decide. Where there is none to ask, only --yes will do.
func (b *benchLink) ask(cmd *cobra.Command, cfg link.Config, t linkTarget) error {
	if !b.yes && !b.terminal(cmd.InOrStdin()) {
		return errors.New("this loads the link between two nodes, and there is no terminal to ask at: give --yes if that is wanted")
	}
	sending, all := cfg.Load()
	speed := "as fast as it can"
	if cfg.Rate > 0 {
		speed = "with " + b.rate + " bit/s"
	}
	err := confirm(cmd, b.yes, fmt.Sprintf(`This measures to %s over the overlay and to %s over the underlay.
It takes about %v. For %v of that it sends %s, and for as long it receives so; whatever
else uses these links has to share them. Go on?`, t.overlay, t.underlay, all.Round(time.Second), sending, speed))
	if errors.Is(err, errDeclined) {
		return errors.New("nothing was measured")
	}
	return err
}

func (b *benchLink) print(out io.Writer, r *link.Result) error {
	if b.output == "json" {
		return text.JSON(out, r)
	}
	p := text.NewPrinter(out)
	p.Line("overlay    %s to %s", text.Dash(r.Overlay.Local), r.Overlay.Address)
	p.Line("underlay   %s to %s", text.Dash(r.Underlay.Local), r.Underlay.Address)
	if len(r.Measures) > 0 {
		p.Line("")
		for _, row := range r.Table() {
			p.Line("%s", strings.Join(row, "\t"))
		}
	}
	for i, note := range r.Notes {
		if i == 0 {
			p.Line("")
		}
		p.Line("NOTE: %s", note)
	}
	return p.Finish()
}

// verdict is an error where anything does not work over the overlay.
func verdict(r *link.Result) error {
	var parts []string
	if len(r.Failures) > 0 {
		parts = append(parts, "the overlay does not work where the underlay does:\n  "+strings.Join(r.Failures, "\n  "))
	}
	if len(r.Both) > 0 {
		parts = append(parts, "neither the overlay nor the underlay works:\n  "+strings.Join(r.Both, "\n  "))
	}
	if parts == nil {
		return nil
	}
	return errors.New(strings.Join(parts, "\n"))
}
