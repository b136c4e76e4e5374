package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"muslin/encap"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/fib"
)

type fleetFlags struct {
	endpoints []string
	canary    string
	count     int
	first     int
}

func newFleetCommand() *cobra.Command {
	var f fleetFlags
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Run the lease side of many daemons in one process",
		Long: `fleet is what many daemons are to etcd: each has a connection of its own, takes a subnet, keeps its lease
and follows all others', with muslin's own code. It carries no packets. It says "standing" once all of them
watch, and from then on, of each change of the lease of the --canary subnet, a line with the new PublicIP, the
number of the daemon and the time at which its table had it (Unix nanoseconds). The network's config is to be in
etcd before.`,
		Example: `  go run ./bench/scale fleet --count 125
  go run ./bench/scale fleet --etcd-endpoints http://127.0.0.1:23790 --count 125 --first 125`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.endpoints, "etcd-endpoints", etcd.DefaultEndpoints(), "etcd's client `URLs`; each daemon takes one of them")
	fs.StringVar(&f.canary, "canary", "10.200.0.0/24", "the `subnet` whose changes are told")
	fs.IntVar(&f.count, "count", 125, "how many daemons")
	fs.IntVar(&f.first, "first", 0, "`number` of the first daemon, where several processes make up the fleet")
	return cmd
}

// joining is how many daemons of a fleet take their subnets at a time. All of one process at once would do
// little but lose races for the same ones.
const joining = 4

// fleet is the daemons of one process.
type fleet struct {
	flags  fleetFlags
	canary netip.Addr // an address in its subnet
	turn   chan struct{}

	mu       sync.Mutex
	standing int
	out      *bufio.Writer
}

func (f *fleetFlags) run(ctx context.Context, out io.Writer) error {
	subnet, err := netip.ParsePrefix(f.canary)
	if err != nil {
		return fmt.Errorf("--canary: %w", err)
	}
	fl := &fleet{flags: *f, canary: subnet.Addr(), turn: make(chan struct{}, joining), out: bufio.NewWriter(out)}
	g, ctx := errgroup.WithContext(ctx)
	for i := range f.count {
		g.Go(func() error {
			if err := fl.daemon(ctx, f.first+i); err != nil && ctx.Err() == nil {
				return fmt.Errorf("daemon %d: %w", f.first+i, err)
			}
			return nil
		})
	}
	g.Go(func() error { return fl.flush(ctx) })
	return g.Wait()
}

// daemon is the lease side of number n.
func (f *fleet) daemon(ctx context.Context, n int) error {
	log := slog.New(slog.DiscardHandler)
	store, err := etcd.Dial(etcd.Config{Endpoints: f.flags.endpoints[n%len(f.flags.endpoints):][:1], Logger: log})
	if err != nil {
		return err
	}
	defer store.Close()
	feed := lease.NewFeed(store, log)
	network, keeper, own, err := f.join(ctx, store, feed, n)
	if err != nil {
		return err
	}
	watcher := lease.NewWatcher(lease.WatcherConfig{
		Feed: feed, Logger: log, OnTable: f.follow(n),
		Node: lease.Node{Subnet: own.Subnet, PublicIP: own.Attrs.PublicIP, Backend: lease.BackendVXLAN, VNI: own.Attrs.VNI, Network: network.Network},
	})
	g, ctx := errgroup.WithContext(ctx)
	for _, task := range []func(context.Context) error{keeper.Run, watcher.Run, feed.Run} {
		g.Go(func() error { return task(ctx) })
	}
	return g.Wait()
}

// join takes a subnet for number n, when it is its turn.
func (f *fleet) join(ctx context.Context, store lease.Store, feed *lease.Feed, n int) (*lease.Config, *lease.Keeper, lease.Lease, error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return nil, nil, lease.Lease{}, ctx.Err()
	}
	log := slog.New(slog.DiscardHandler)
	network, _, err := lease.WaitConfig(ctx, store, log)
	if err != nil {
		return nil, nil, lease.Lease{}, err
	}
	attrs, err := attrsOf(n)
	if err != nil {
		return nil, nil, lease.Lease{}, err
	}
	keeper, err := lease.NewKeeper(lease.KeeperConfig{Store: store, Feed: feed, Network: network, Logger: log, Attrs: attrs})
	if err != nil {
		return nil, nil, lease.Lease{}, err
	}
	own, err := keeper.Acquire(ctx)
	return network, keeper, own, err
}

// attrsOf is what number n publishes.
func attrsOf(n int) (lease.Attrs, error) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	vni, err := encap.NewVNI(1)
	return lease.Attrs{
		PublicIP:    netip.AddrFrom4([4]byte{192, 168, b[2], b[3]}),
		BackendType: lease.BackendVXLAN, VNI: vni,
		MAC: encap.LocalMAC([6]byte{0, 0, b[0], b[1], b[2], b[3]}),
	}, err
}

// sighting is a line about the canary.
type sighting struct {
	PublicIP netip.Addr `json:"public_ip"`
	Daemon   int        `json:"daemon"`
	At       int64      `json:"at"` // Unix nanoseconds
}

// standing is the line that says that all watch.
const standing = "standing"

// follow looks at the tables of number n.
func (f *fleet) follow(n int) func(*fib.Table) {
	var known netip.Addr
	first := true
	return func(t *fib.Table) {
		at := time.Now()
		f.mu.Lock()
		defer f.mu.Unlock()
		// The writer keeps its first error, of which flush tells.
		if p := t.Lookup(f.canary); p != nil && p.PublicIP != known {
			known = p.PublicIP
			_ = json.NewEncoder(f.out).Encode(sighting{known, n, at.UnixNano()})
		}
		if first {
			first = false
			if f.standing++; f.standing == f.flags.count {
				fmt.Fprintln(f.out, standing)
			}
		}
	}
}

// flush writes the lines out now and then, so that writing does not stand between a change and its time.
func (f *fleet) flush(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var last bool
		select {
		case <-tick.C:
		case <-ctx.Done():
			last = true
		}
		f.mu.Lock()
		err := f.out.Flush()
		f.mu.Unlock()
		if err != nil || last {
			return err
		}
	}
}
