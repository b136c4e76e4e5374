package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"muslin/bench/lab"
)

const (
	demoNetwork  = "10.244.0.0/16"
	demoMaxHosts = 20 // 380 pairs, a second each
	demoTCPTime  = 1  // in seconds, of each pair's throughput measurement
	demoPings    = 10
)

type demo struct {
	hosts   int
	backend string
	keep    bool

	out io.Writer
	bin string
}

func newDemoCommand() *cobra.Command {
	d := new(demo)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try muslin on this machine: hosts, pods and daemons in network namespaces",
		Long: `demo builds a small network on this machine, each host and each pod in a network namespace of its own:

  pod a ── cni0 ─ host 1 ─ eth0 ──┐
  pod a ── cni0 ─ host 2 ─ eth0 ──┼── switch
  pod a ── cni0 ─ host 3 ─ eth0 ──┘

It starts a muslin daemon on every host, the first with an embedded etcd, measures ping times and TCP
throughput from every pod to every other, and takes everything away again, also after Ctrl-C. Nothing
outside these namespaces is changed. It needs root, /dev/net/tun, ip and iperf3, and exits with
status 1 if any pair of pods does not reach each other.`,
		Example: `  muslin demo
  muslin demo --backend udp --hosts 2
  muslin demo --keep      # leave it running, and look inside`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().IntVar(&d.hosts, "hosts", 3, fmt.Sprintf("how many `hosts`, 2 to %d", demoMaxHosts))
	cmd.Flags().StringVar(&d.backend, "backend", "vxlan", "vxlan or udp")
	cmd.Flags().BoolVar(&d.keep, "keep", false, "leave it running until Ctrl-C, and say how to look inside")
	return cmd
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := d.check(); err != nil {
		return err
	}
	if d.bin, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program's file, to start the daemons from: %w", err)
	}
	if swept, err := lab.Sweep(); err != nil {
		return err
	} else if len(swept) > 0 {
		d.say("removed what killed demos had left: %s", strings.Join(swept, ", "))
	}

	d.say("building %d hosts and a switch ...", d.hosts)
	l, err := lab.New(ctx, lab.Config{Hosts: d.hosts})
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() {
		err = interrupted(ctx, errors.Join(err, d.clean(l)))
	}()
	daemons, err := d.startDaemons(ctx, l)
	if err != nil {
		return err
	}
	failed, err := d.measure(ctx, l)
	if err != nil {
		return err
	}
	if d.keep {
		d.explainKept(l, daemons)
		<-ctx.Done() // the way it is meant to end: not an error
	}
	return failed
}

// interrupted says in one sentence what a command cut off by Ctrl-C says in many.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("demo: interrupted")
	}
	return err
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// check says at once everything that stands in the way.
func (d *demo) check() error {
	var bad []error
	if d.hosts < 2 || d.hosts > demoMaxHosts {
		bad = append(bad, fmt.Errorf("--hosts %d: want 2 to %d", d.hosts, demoMaxHosts))
	}
	if d.backend != "vxlan" && d.backend != "udp" {
		bad = append(bad, fmt.Errorf("--backend %q: the demo knows vxlan and udp", d.backend))
	}
	if os.Geteuid() != 0 {
		bad = append(bad, errors.New("the demo makes network namespaces, which needs root: run `sudo muslin demo`"))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		bad = append(bad, fmt.Errorf("%w: load the module with `modprobe tun`, or give the container --device /dev/net/tun", err))
	}
	if err := lab.MissingTools("ip", "iperf3"); err != nil {
		bad = append(bad, err)
	}
	return errors.Join(bad...)
}

// startDaemons starts the first daemon with the embedded etcd, then the others, and a pod on each host.
func (d *demo) startDaemons(ctx context.Context, l *lab.Lab) ([]*lab.Muslin, error) {
	var daemons []*lab.Muslin
	for _, h := range l.Hosts() {
		flags := []string{"--etcd-endpoints", fmt.Sprintf("http://%s:2379", l.Host(1).Addr)}
		what := "daemon"
		if h.Number == 1 {
			flags = []string{"--embedded-etcd", "--network", demoNetwork, "--backend", d.backend}
			what = "daemon with embedded etcd"
		}
		m, err := h.StartMuslin(ctx, d.bin, flags...)
		if err != nil {
			return nil, err
		}
		network, err := m.PodNetwork()
		if err != nil {
			return nil, err
		}
		pod, err := m.AddPod(ctx, "a")
		if err != nil {
			return nil, err
		}
		d.say("host %d  %-12s %s took %s; pod a is %s", h.Number, h.Addr, what, network.Gateway.Masked(), pod.Addr)
		daemons = append(daemons, m)
	}
	return daemons, d.waitPeers(ctx, daemons)
}

// waitPeers waits until every daemon has heard of all the others.
func (d *demo) waitPeers(ctx context.Context, daemons []*lab.Muslin) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("the daemons did not hear of each other's leases within 15 s"))
	defer cancel()
	for _, m := range daemons {
		for {
			status, err := m.Status(ctx)
			if err == nil && len(status.Peers) == len(daemons)-1 {
				break
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("wait for peers of %s: %w; its log:\n%s", m.Name, context.Cause(ctx), m.Output())
			}
		}
	}
	return nil
}

// measure prints the table. The first error lists the pairs that failed, the second is why there is no
// table.
func (d *demo) measure(ctx context.Context, l *lab.Lab) (failed, err error) {
	d.say("\nmeasuring every pair of pods over %s, one after the other ...\n", d.backend)
	table := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "FROM\tTO\tPING ms\tTCP Gb/s")
	var bad []error
	for _, from := range l.Hosts() {
		for _, to := range l.Hosts() {
			if from == to {
				continue
			}
			row, err := d.pair(ctx, from.Pods()[0], to.Pods()[0])
			if ctx.Err() != nil {
				return nil, context.Canceled
			}
			if err != nil {
				bad = append(bad, err)
			}
			fmt.Fprintf(table, "host %d  %s\thost %d  %s\t%s\n", from.Number, from.Pods()[0].Addr, to.Number, to.Pods()[0].Addr, row)
		}
	}
	if err := table.Flush(); err != nil {
		return nil, err
	}
	if bad != nil {
		return fmt.Errorf("%d pairs of pods failed:\n%w", len(bad), errors.Join(bad...)), nil
	}
	d.say("\n(one TCP stream; sender, receiver and both daemons share this machine's processors)")
	return nil, nil
}

// pair measures from one pod to another, and returns two columns of the table.
func (d *demo) pair(ctx context.Context, from, to *lab.Pod) (string, error) {
	ping, err := from.Ping(ctx, to.Addr, lab.PingOptions{Count: demoPings})
	if err == nil && ping.Received != ping.Sent {
		err = fmt.Errorf("ping from %s to %s: %d of %d came back", from.Addr, to.Addr, ping.Received, ping.Sent)
	}
	if err != nil {
		return "FAILED\t", err
	}
	rtt := fmt.Sprintf("%.3f", float64(ping.Average)/float64(time.Millisecond))
	tcp, err := lab.IperfTCP(ctx, from.Node, to.Node, to.Addr, demoTCPTime)
	if err == nil && tcp.Bytes == 0 {
		err = fmt.Errorf("TCP from %s to %s: nothing arrived", from.Addr, to.Addr)
	}
	if err != nil {
		return rtt + "\tFAILED", err
	}
	return fmt.Sprintf("%s\t%.2f", rtt, tcp.BitsPerSecond/1e9), nil
}

func (d *demo) explainKept(l *lab.Lab, daemons []*lab.Muslin) {
	first, pod, other := daemons[0], l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	d.say(`
It runs until you press Ctrl-C. From another terminal, as root:

  host 1's daemon, its peers and its drops
    %[1]s status --control %[2]s
  from host 1's pod to host 2's
    ip netns exec %[3]s ping %[4]s
  the datagrams between the hosts
    ip netns exec %[5]s tcpdump -ni eth0 udp
  host 1's routes
    ip netns exec %[5]s ip route
  logs and state of all hosts
    ls %[6]s`,
		d.bin, first.Control, pod.NetNS, other.Addr, l.Host(1).NetNS, l.Dir())
}

// clean takes the lab away and looks whether that is true.
func (d *demo) clean(l *lab.Lab) error {
	d.say("\ncleaning up ...")
	if err := l.Close(); err != nil {
		return err
	}
	if left := l.Leftovers(); len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	d.say("every process, namespace, link and file of the demo is gone")
	return nil
}
