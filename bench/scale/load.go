package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"muslin/bench/crowd"
	"muslin/lease/etcd"
)

type loadFlags struct {
	endpoints []string
	prefix    string
	subnets   string
	publicIPs string
	nodes     int
	rate      int
	length    time.Duration
	keep      bool
}

func newLoadCommand() *cobra.Command {
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Fill an etcd with leases of nodes that do not exist, and change them",
		Long: `load writes as many leases as --nodes says, as flannel's nodes with the vxlan backend do, and changes them
--rate times a second for as long as --for says: of ten changes eight give a node another PublicIP and MAC, one
takes a lease away and one brings one back. Then, or at Ctrl-C, it takes all of them away again, unless told to
--keep them.`,
		Example: `  go run ./bench/scale load --nodes 10000 --rate 1000 --for 1m
  go run ./bench/scale load --nodes 10000 --rate 0 --keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.endpoints, "etcd-endpoints", etcd.DefaultEndpoints(), "etcd's client `URLs`")
	fs.StringVar(&f.prefix, "etcd-prefix", etcd.DefaultPrefix, "of the network's `keys`")
	fs.StringVar(&f.subnets, "first-subnet", "10.1.0.0/24", "of the first node; the others' follow")
	fs.StringVar(&f.publicIPs, "public-ips", "172.16.0.0/12", "where the nodes' PublicIPs lie")
	fs.IntVar(&f.nodes, "nodes", 10_000, "how many")
	fs.IntVar(&f.rate, "rate", 1000, "changes a second; 0: none")
	fs.DurationVar(&f.length, "for", time.Minute, "how long to change leases")
	fs.BoolVar(&f.keep, "keep", false, "leave the leases in etcd at the end, for their time to live")
	return cmd
}

func (f *loadFlags) run(ctx context.Context, out io.Writer) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: f.endpoints, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer client.Close()
	cfg := crowd.Config{Client: client, Prefix: f.prefix, Nodes: f.nodes}
	if cfg.Subnets, err = netip.ParsePrefix(f.subnets); err != nil {
		return fmt.Errorf("--first-subnet: %w", err)
	}
	if cfg.PublicIPs, err = netip.ParsePrefix(f.publicIPs); err != nil {
		return fmt.Errorf("--public-ips: %w", err)
	}
	c, err := crowd.New(cfg)
	if err != nil {
		return err
	}
	err = f.load(ctx, c, out)
	if f.keep {
		return err
	}
	fmt.Fprintln(out, "taking the leases away")
	return errors.Join(err, c.Clear(context.WithoutCancel(ctx)))
}

func (f *loadFlags) load(ctx context.Context, c *crowd.Crowd, out io.Writer) error {
	began := time.Now()
	if err := c.Fill(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d leases written in %v\n", f.nodes, time.Since(began).Round(time.Millisecond))
	if f.rate == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.length)
	defer cancel()
	churned, err := c.Churn(ctx, f.rate)
	fmt.Fprintln(out, churned)
	return err
}
