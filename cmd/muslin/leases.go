package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/text"
	"muslin/lease"
	"muslin/lease/etcd"
)

// storeCommand is what the commands that talk to the store themselves have in common.
type storeCommand struct {
	flags storeFlags
	yes   bool
}

// run connects, calls f, and closes.
func (s *storeCommand) run(cmd *cobra.Command, f func(ctx context.Context, store *etcd.Store) error) error {
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
	store, err := s.flags.connect(ctx, log)
	cancel()
	if err != nil {
		return err
	}
	defer store.Close()
	return f(cmd.Context(), store)
}

func newLeasesCommand() *cobra.Command {
	s := new(storeCommand)
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "List, reserve and release leases in the store",
		Long: `leases shows and changes the leases as etcd has them, whichever daemon wrote them, muslin's or flannel's.
It talks to etcd, not to the daemon.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s.flags.register(cmd.PersistentFlags())
	cmd.AddCommand(s.newList(), s.newReserve(), s.newRelease())
	return cmd
}

// leaseLine is a lease in `leases list --output json`.
type leaseLine struct {
	Key         string   `json:"key"`
	Subnet      string   `json:"subnet"`
	PublicIP    string   `json:"public_ip"`
	Backend     string   `json:"backend"`
	VtepMAC     string   `json:"vtep_mac"`
	Reserved    bool     `json:"reserved"`
	ExpiresSecs *float64 `json:"expires_seconds"` // null: never, or not known
	Problem     string   `json:"problem"`         // why it is no lease that muslin can use
}

func (s *storeCommand) newList() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List every key under the leases, foreign and broken ones too",
		Long: `list prints every key that lies where leases lie, also what is none: a flannel node loses its peers over
such a key, so it is worth knowing. --output peers-file prints the good ones in the form that
"muslin run --peers-file" reads: save it while the store lives.`,
		Example: `  muslin leases list
  muslin leases list --output peers-file > peers.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.run(cmd, func(ctx context.Context, store *etcd.Store) error {
				entries, _, err := store.List(ctx)
				if err != nil {
					return err
				}
				return printLeases(ctx, cmd, store, entries, output)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or peers-file")
	return cmd
}

func printLeases(ctx context.Context, cmd *cobra.Command, store *etcd.Store, entries []lease.Entry, output string) error {
	w := cmd.OutOrStdout()
	var good []lease.Lease
	lines := []leaseLine{}
	for _, e := range entries {
		l, err := lease.ParseLease(e)
		line := leaseLine{Key: e.Key, Reserved: e.Reserved}
		if err != nil {
			line.Problem = err.Error()
		} else {
			good = append(good, l)
			line.Subnet, line.PublicIP, line.Backend = text.Prefix(l.Subnet), text.Addr(l.Attrs.PublicIP), l.Attrs.BackendType
			mac := l.Attrs.MAC
			if !l.Subnet.IsValid() { // of IPv6 alone
				line.Subnet, line.PublicIP, mac = text.Prefix(l.Subnet6), text.Addr(l.Attrs.PublicIPv6), l.Attrs.MAC6
			}
			if l.Attrs.BackendType == lease.BackendVXLAN {
				line.VtepMAC = mac.String()
			}
		}
		if !e.Reserved {
			if left, err := store.TimeToLive(ctx, e.Key); err == nil {
				secs := left.Seconds()
				line.ExpiresSecs = &secs
			}
		}
		lines = append(lines, line)
	}
	switch output {
	case "json":
		return text.JSON(w, lines)
	case "peers-file":
		for _, l := range lines {
			if l.Problem != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "left out: %s: %s\n", l.Key, l.Problem)
			}
		}
		return writePeersFile(w, cmd.ErrOrStderr(), good)
	case "text":
		p := text.NewPrinter(w)
		p.Line("KEY\tPUBLIC IP\tBACKEND\tVTEP MAC\tEXPIRES\tPROBLEM")
		for _, l := range lines {
			p.Line("%s\t%s\t%s\t%s\t%s\t%s", l.Key, text.Dash(l.PublicIP), text.Dash(l.Backend), text.Dash(l.VtepMAC), l.expiry(), l.Problem)
		}
		return p.Finish()
	}
	return fmt.Errorf("--output %q: want text, json or peers-file", output)
}

// writePeersFile writes one lease for each node: of two with one PublicIP the newer is the one in use.
func writePeersFile(w, warn io.Writer, leases []lease.Lease) error {
	newest := map[netip.Addr]lease.Lease{}
	for _, l := range leases {
		ip := l.Attrs.PublicIP
		old, twice := newest[ip]
		if twice {
			if old.Revision > l.Revision {
				old, l = l, old
			}
			fmt.Fprintf(warn, "left out: %s: %s has a newer lease, %s\n", old.Key, ip, l.Key)
		}
		newest[ip] = l
	}
	if len(newest) == 0 {
		return errors.New("there is no lease to save")
	}
	data, err := lease.MarshalPeersFile(slices.Collect(maps.Values(newest)))
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func (l *leaseLine) expiry() string {
	switch {
	case l.Reserved:
		return "never (reserved)"
	case l.ExpiresSecs == nil:
		return "unknown"
	}
	return "in " + (time.Duration(*l.ExpiresSecs) * time.Second).String()
}

func (s *storeCommand) newReserve() *cobra.Command {
	var publicIP string
	cmd := &cobra.Command{
		Use:   "reserve SUBNET",
		Short: "Make a lease permanent, or keep a subnet for a node that is to come",
		Long: `reserve takes the time to live off a lease, so that the node keeps its subnet however long it is away.
For a subnet that nobody has, --public-ip says for which node it is kept.`,
		Example: `  muslin leases reserve 10.244.5.0/24
  muslin leases reserve 10.244.9.0/24 --public-ip 192.0.2.9`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := leaseKey(args[0])
			if err != nil {
				return err
			}
			ip, err := optionalIPv4("--public-ip", publicIP)
			if err != nil {
				return err
			}
			return s.run(cmd, func(ctx context.Context, store *etcd.Store) error {
				return s.reserve(ctx, cmd, store, key, ip)
			})
		},
	}
	cmd.Flags().StringVar(&publicIP, "public-ip", "", "`address` of the node, for a subnet that has no lease")
	cmd.Flags().BoolVarP(&s.yes, "yes", "y", false, "do not ask")
	return cmd
}

func (s *storeCommand) reserve(ctx context.Context, cmd *cobra.Command, store *etcd.Store, key string, ip netip.Addr) error {
	entry, err := findEntry(ctx, store, key)
	switch {
	case errors.Is(err, lease.ErrNotFound):
		return s.reserveNew(ctx, cmd, store, key, ip)
	case err != nil:
		return err
	}
	l, err := lease.ParseLease(entry)
	if err != nil {
		return err
	}
	if ip.IsValid() && ip != l.Attrs.PublicIP {
		return fmt.Errorf("%s is held by %s, not by %v: release it first, or leave --public-ip out", key, l.Attrs, ip)
	}
	if entry.Reserved {
		fmt.Fprintf(cmd.OutOrStdout(), "%s is reserved already\n", key)
		return nil
	}
	if err := confirm(cmd, s.yes, fmt.Sprintf("Make %s permanent, as it is now: %s?", key, entry.Value)); err != nil {
		return err
	}
	if _, err := store.PutLease(ctx, key, entry.Value, lease.Permanent, entry.Revision); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is reserved\n", key)
	return nil
}

func (s *storeCommand) reserveNew(ctx context.Context, cmd *cobra.Command, store *etcd.Store, key string, ip netip.Addr) error {
	if !ip.IsValid() {
		return fmt.Errorf("nobody has %s: say for which node it is to be kept with --public-ip", key)
	}
	if err := fitsConfig(ctx, store, key); err != nil {
		return err
	}
	value, err := json.Marshal(lease.Attrs{PublicIP: ip, BackendType: lease.BackendUDP})
	if err != nil {
		return err
	}
	if err := confirm(cmd, s.yes, fmt.Sprintf("Reserve %s for %s?", key, ip)); err != nil {
		return err
	}
	if _, err := store.PutLease(ctx, key, value, lease.Permanent, lease.Absent); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is reserved for %s\n", key, ip)
	return nil
}

// fitsConfig refuses a subnet that the network's config would never hand out.
func fitsConfig(ctx context.Context, store *etcd.Store, key string) error {
	raw, _, err := store.Config(ctx)
	if err != nil {
		return err
	}
	cfg, err := lease.ParseConfig(raw)
	if err != nil {
		return err
	}
	subnet, subnet6, err := lease.ParseKey(key)
	if err != nil {
		return err
	}
	if cfg.EnableIPv6 {
		if !cfg.FitsLease(subnet, subnet6) {
			return fmt.Errorf("%s is no lease of this network: with EnableIPv6 its key is that of a subnet of each family that the network has, as in 10.244.1.0-24&2001:db8:1::-64", key)
		}
		return nil
	}
	if !cfg.Fits(subnet) {
		return fmt.Errorf("%v is no subnet of this network: they are /%d, from %v to %v", subnet, cfg.SubnetLen, cfg.SubnetMin, cfg.SubnetMax)
	}
	return nil
}

func (s *storeCommand) newRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release SUBNET|KEY",
		Short: "Delete a lease, a reservation or a foreign key",
		Long: `release deletes one key from where the leases lie. All nodes drop the peer at once. A muslin daemon that
runs takes its subnet again; a flannel daemon exits. It also removes a foreign key that list shows, also one
beside the leases such as "../subnets-old".`,
		Example: `  muslin leases release 10.244.5.0/24`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.run(cmd, func(ctx context.Context, store *etcd.Store) error {
				entry, err := toRelease(ctx, store, args[0])
				if err != nil {
					return err
				}
				if err := confirm(cmd, s.yes, fmt.Sprintf("Delete %s: %s?", entry.Key, entry.Value)); err != nil {
					return err
				}
				if err := store.DeleteLease(ctx, entry.Key, entry.Revision); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is released\n", entry.Key)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&s.yes, "yes", "y", false, "do not ask")
	return cmd
}

// toRelease finds the key that is spelled just so, which may be a foreign one, or else the lease of the
// subnet. A foreign key that looks like a subnet must not lead to a lease.
func toRelease(ctx context.Context, store *etcd.Store, arg string) (lease.Entry, error) {
	literal, err := findEntry(ctx, store, arg)
	if err != nil && !errors.Is(err, lease.ErrNotFound) {
		return lease.Entry{}, err
	}
	key, keyErr := leaseKey(arg)
	if keyErr != nil || key == arg {
		return literal, err
	}
	leased, leaseErr := findEntry(ctx, store, key)
	switch {
	case err != nil:
		return leased, leaseErr
	case leaseErr == nil:
		return lease.Entry{}, fmt.Errorf("%q is a foreign key, and %s is the lease of that subnet: delete the one or the other with etcdctl", arg, key)
	}
	return literal, nil
}

func findEntry(ctx context.Context, store *etcd.Store, key string) (lease.Entry, error) {
	entries, _, err := store.List(ctx)
	if err != nil {
		return lease.Entry{}, err
	}
	for _, e := range entries {
		if e.Key == key {
			return e, nil
		}
	}
	return lease.Entry{}, fmt.Errorf("%s: %w (muslin leases list shows what there is)", key, lease.ErrNotFound)
}

// leaseKey reads "10.244.5.0/24" or "10.244.5.0-24".
func leaseKey(s string) (string, error) {
	if subnet, err := netip.ParsePrefix(s); err == nil {
		if subnet != subnet.Masked() {
			return "", fmt.Errorf("%s has host bits: the subnet is %v", s, subnet.Masked())
		}
		return lease.Key(subnet), nil
	}
	if _, _, err := lease.ParseKey(s); err != nil {
		return "", fmt.Errorf("%q: want a subnet such as 10.244.5.0/24", s)
	}
	return s, nil
}
