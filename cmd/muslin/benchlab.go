package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"muslin/bench/compare"
	"muslin/bench/lab"
)

// benchLab are the flags of "bench lab".
type benchLab struct {
	rounds   int
	seconds  int
	rate     int
	only     []string
	measures []string
	rivals   []string
	flanneld string
	outDir   string
	quick    bool
	check    bool
	list     bool

	out      io.Writer
	progress *progressLine
}

// What --quick measures, where no flag says otherwise.
const (
	quickRounds  = 3
	quickSeconds = 1
)

var (
	quickSystems  = append([]string{"plain", compare.Baseline, "kernel-vxlan-notunnel", "muslin-vxlan", "muslin-udp"}, compare.RivalNames()...)
	quickMeasures = []string{"tcp-1", "udp-64", "tcp-latency"}
)

func newBenchLabCommand() *cobra.Command {
	_, cmd := benchLabCommand()
	return cmd
}

// benchLabCommand also returns where the command's flags go.
func benchLabCommand() (*benchLab, *cobra.Command) {
	b := new(benchLab)
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Measure muslin beside the kernel's VXLAN and other overlays, in network namespaces",
		Long: `lab builds two hosts with a pod on each for every system, all in network namespaces of this machine, and
sends the same flows from pod to pod through each: TCP, UDP, ping-pong. The systems take turns, figure by figure
and round by round, since the speed of a machine drifts; ratios are made of figures of one round. iperf3 and
sockperf do the measuring.

The systems are plain routing, the kernel's VXLAN (as flannel sets it up, on network cards with and without
offloads for tunnels and for UDP), muslin with all features and with each switched off, and, where they are
installed, wireguard-go, nebula, tinc and openvpn; flannel's udp backend where --flanneld gives its program.

It needs root, /dev/net/tun, and the Debian packages iproute2, iperf3, sockperf and ethtool. Nothing outside its
namespaces is changed, and Ctrl-C takes everything away. With the default flags it takes about an hour; the
machine should have nothing else to do.`,
		Example: `  muslin bench lab --quick
  muslin bench lab --only kernel-vxlan,muslin-vxlan,muslin-vxlan:none --measures 'tcp-*'
  muslin bench lab --out results --flanneld ./flanneld --rival nebula=./nebula
  muslin bench lab --check       # exit status 1 if a ratio is below what muslin is held to`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.OutOrStdout()
			b.progress = newProgressLine(cmd.ErrOrStderr())
			if b.quick {
				b.beQuick(cmd.Flags().Changed)
			}
			return b.run(cmd.Context(), cmd.Flags().Changed("measures"))
		},
	}
	f := cmd.Flags()
	f.IntVar(&b.rounds, "rounds", 5, "how many `times` each figure is taken of each system")
	f.IntVar(&b.seconds, "seconds", 3, "how many `seconds` each measurement lasts")
	f.IntVar(&b.rate, "rate", 20000, "`packets` a second that the fixed-rate UDP measurements offer")
	f.StringSliceVar(&b.only, "only", nil, "measure these `systems` only, by name or pattern (muslin-*); see --list")
	f.StringSliceVar(&b.measures, "measures", nil, "take these `measures` only, by name or pattern (tcp-*), but of every system; see --list")
	f.BoolVar(&b.quick, "quick", false, fmt.Sprintf("%d rounds of %d s of %s, of the main systems", quickRounds, quickSeconds, strings.Join(quickMeasures, ", ")))
	f.BoolVar(&b.check, "check", false, "measure what the project's targets need, and fail if one is missed")
	f.BoolVar(&b.list, "list", false, "list the systems and the measures, and measure nothing")
	f.StringVar(&b.outDir, "out", "", "write "+compare.JSONFile+" and "+compare.BenchstatFile+" (for benchstat) into this `directory`")
	f.StringArrayVar(&b.rivals, "rival", nil, "`name=path` of another binary for a system: "+strings.Join(compare.RivalNames(), ", ")+"; repeatable")
	f.StringVar(&b.flanneld, "flanneld", "", "`path` of flanneld, to measure flannel's udp backend (needs etcd)")
	cmd.MarkFlagsMutuallyExclusive("check", "only")
	cmd.MarkFlagsMutuallyExclusive("check", "measures")
	return b, cmd
}

// beQuick sets what no flag has set.
func (b *benchLab) beQuick(given func(flag string) bool) {
	if !given("rounds") {
		b.rounds = quickRounds
	}
	if !given("seconds") {
		b.seconds = quickSeconds
	}
	if !given("only") && !b.check {
		b.only = quickSystems
	}
	if !given("measures") && !b.check {
		b.measures = quickMeasures
	}
}

func (b *benchLab) run(ctx context.Context, wholeLadder bool) error {
	plan, err := b.plan()
	if err != nil {
		return err
	}
	plan.WholeLadder = wholeLadder
	if b.list {
		return b.printList(plan.Programs)
	}
	if err := b.ready(); err != nil {
		return err
	}
	if swept, err := lab.Sweep(); err != nil {
		return err
	} else if len(swept) > 0 {
		b.progress.line("removed what killed labs had left: %s", strings.Join(swept, ", "))
	}
	plan.Progress = b.progress.show
	results, err := compare.Run(ctx, plan)
	b.progress.end()
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return errors.New("bench lab: interrupted; nothing was written")
		}
		return err
	}
	return b.report(results)
}

// plan makes what is to be measured of the flags.
func (b *benchLab) plan() (compare.Plan, error) {
	p := compare.Plan{Settings: compare.Settings{Rounds: b.rounds, Seconds: b.seconds, FixedPPS: b.rate}}
	var bad []error
	if b.rounds < 1 || b.seconds < 1 || b.rate < 1 {
		bad = append(bad, errors.New("--rounds, --seconds and --rate want a number above 0"))
	}
	var err error
	if p.Programs, err = b.programs(); err != nil {
		bad = append(bad, err)
	}
	only, measures := b.only, b.measures
	if b.check {
		var figures []compare.Figure
		for _, m := range compare.Measures() {
			figures = append(figures, m.Figures...)
		}
		only, measures = compare.NeededFor(compare.Targets, figures)
	}
	if p.Systems, err = compare.Select(p.Programs, only); err != nil {
		bad = append(bad, fmt.Errorf("--only: %w", err))
	}
	if measures == nil {
		measures = []string{"*"}
	}
	if p.Measures, err = compare.SelectMeasures(measures); err != nil {
		bad = append(bad, fmt.Errorf("--measures: %w", err))
	}
	return p, errors.Join(bad...)
}

// programs finds the binaries: our own, and those that flags give for the rivals'.
func (b *benchLab) programs() (compare.Programs, error) {
	p := compare.Programs{Version: buildVersion(), Rivals: make(map[string]string)}
	var err error
	if p.Muslin, err = os.Executable(); err != nil {
		return p, fmt.Errorf("find this program's file, to start the daemons from: %w", err)
	}
	given := slices.Clone(b.rivals)
	if b.flanneld != "" {
		given = append(given, "flannel-udp="+b.flanneld)
	}
	for _, g := range given {
		name, path, ok := strings.Cut(g, "=")
		if !ok || !slices.Contains(compare.RivalNames(), name) {
			return p, fmt.Errorf("--rival %s: want name=path with a name of %s", g, strings.Join(compare.RivalNames(), ", "))
		}
		found, err := exec.LookPath(path)
		if err != nil {
			return p, fmt.Errorf("binary for %s: %w", name, err)
		}
		if p.Rivals[name], err = filepath.Abs(found); err != nil {
			return p, fmt.Errorf("binary for %s: %w", name, err)
		}
	}
	return p, nil
}

// ready says at once everything that stands in the way.
func (b *benchLab) ready() error {
	var bad []error
	if os.Geteuid() != 0 {
		bad = append(bad, errors.New("bench lab makes network namespaces, which needs root: run `sudo muslin bench lab`"))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		bad = append(bad, fmt.Errorf("%w: load the module with `modprobe tun`, or give the container --device /dev/net/tun", err))
	}
	if err := lab.MissingTools("ip", "bridge", "iperf3", "sockperf", "ethtool"); err != nil {
		bad = append(bad, err)
	}
	return errors.Join(bad...)
}

func (b *benchLab) printList(p compare.Programs) error {
	table := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SYSTEM\t")
	for _, s := range compare.Catalogue(p) {
		e := s.Entry()
		fmt.Fprintf(table, "%s\t%s\n", e.Name, e.About)
	}
	fmt.Fprintln(table, "\t\nMEASURE\t")
	for _, m := range compare.Measures() {
		var figures []string
		for _, f := range m.Figures {
			figures = append(figures, fmt.Sprintf("%s (%s)", f.Title, f.Unit))
		}
		fmt.Fprintf(table, "%s\t%s\n", m.Name, strings.Join(figures, "; "))
	}
	return table.Flush()
}

// report prints and writes the results, and says what they are worth: a target that is missed and a system of
// ours or the kernel's that failed are errors.
func (b *benchLab) report(r *compare.Results) error {
	if b.outDir != "" {
		if err := r.Write(b.outDir); err != nil {
			return err
		}
	}
	if err := r.WriteReport(b.out); err != nil {
		return err
	}
	fmt.Fprintln(b.out)
	ok, err := compare.WriteVerdicts(b.out, r.Judge(compare.Targets))
	if err != nil {
		return err
	}
	if b.outDir != "" {
		fmt.Fprintf(b.out, "\nwritten to %s: %s, %s\n", b.outDir, compare.JSONFile, compare.BenchstatFile)
	}
	if b.check && !ok {
		return errors.New("bench lab --check: a target is missed, see the table")
	}
	if broken := r.Broken(); len(broken) > 0 {
		return fmt.Errorf("bench lab: not everything could be measured: %s", strings.Join(broken, ", "))
	}
	return nil
}

// progressEvery is how often a line is printed where there is no terminal to write over.
const progressEvery = 10 * time.Second

// progressLine shows what is being done: on a terminal in one line that is written over.
type progressLine struct {
	w        io.Writer
	terminal bool
	last     time.Time
}

func newProgressLine(w io.Writer) *progressLine {
	p := &progressLine{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progressLine) show(s compare.Progress) {
	if s.News {
		p.line("%s", s.Text)
		return
	}
	text := s.Text
	if s.Total > 0 {
		text = fmt.Sprintf("%3d %%, %v left: %s", 100*s.Done/s.Total, s.Left.Round(time.Second), s.Text)
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", text)
	} else if time.Since(p.last) >= progressEvery {
		p.last = time.Now()
		fmt.Fprintln(p.w, text)
	}
}

// line prints something that stays.
func (p *progressLine) line(format string, args ...any) {
	p.end()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// end clears the line that is written over.
func (p *progressLine) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
