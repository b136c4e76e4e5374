package crowd

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
)

// TTL is a lease's time to live, as flannel has it.
const TTL = 24 * time.Hour

// hands is how many requests are under way at a time. etcd commits what comes together in one go.
const hands = 64

// Config says what the crowd looks like. The zero value of each field but Client and Nodes is usable.
type Config struct {
	Client    *clientv3.Client
	Prefix    string       // of flannel's keys; "" means /coreos.com/network
	Nodes     int          // how many
	Subnets   netip.Prefix // the first node's subnet, the others follow; zero means 10.1.0.0/24
	PublicIPs netip.Prefix // where their PublicIPs lie; zero means 172.16.0.0/12
	VNI       uint32       // 0 means 1
}

// Crowd is the nodes. Its methods are for one goroutine, but for Changes.
type Crowd struct {
	cfg     Config
	nodes   []node
	changes atomic.Int64
}

type node struct {
	grant      clientv3.LeaseID // 0: has no lease
	generation uint32           // how often it was changed
}

// New writes nothing yet.
func New(cfg Config) (*Crowd, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "/coreos.com/network"
	}
	if !cfg.Subnets.IsValid() {
		cfg.Subnets = netip.MustParsePrefix("10.1.0.0/24")
	}
	if !cfg.PublicIPs.IsValid() {
		cfg.PublicIPs = netip.MustParsePrefix("172.16.0.0/12")
	}
	if cfg.VNI == 0 {
		cfg.VNI = 1
	}
	if cfg.Nodes < 1 {
		return nil, fmt.Errorf("a crowd of %d: give the number of nodes", cfg.Nodes)
	}
	for what, p := range map[string]netip.Prefix{"subnets": cfg.Subnets, "PublicIPs": cfg.PublicIPs} {
		if !p.Addr().Is4() || p != p.Masked() {
			return nil, fmt.Errorf("%s %v: want an IPv4 prefix without host bits, such as 10.1.0.0/24", what, p)
		}
	}
	if room := uint64(1) << (32 - cfg.PublicIPs.Bits()); uint64(cfg.Nodes) > room {
		return nil, fmt.Errorf("%d nodes have no room in PublicIPs %v: give a shorter prefix", cfg.Nodes, cfg.PublicIPs)
	}
	if last := uint64(number(cfg.Subnets.Addr())) + uint64(cfg.Nodes)<<(32-cfg.Subnets.Bits()); last > 1<<32 {
		return nil, fmt.Errorf("%d subnets from %v on go beyond the end of all addresses: begin lower", cfg.Nodes, cfg.Subnets)
	}
	return &Crowd{cfg: cfg, nodes: make([]node, cfg.Nodes)}, nil
}

// Subnet is the subnet of node i, counted from 0.
func (c *Crowd) Subnet(i int) netip.Prefix {
	bits := c.cfg.Subnets.Bits()
	return netip.PrefixFrom(address(number(c.cfg.Subnets.Addr())+uint32(i)<<(32-bits)), bits)
}

// Changes is how many changes of a lease etcd has acknowledged so far, those of Fill not counted.
func (c *Crowd) Changes() int64 { return c.changes.Load() }

func (c *Crowd) key(i int) string {
	return c.cfg.Prefix + "/subnets/" + strings.ReplaceAll(c.Subnet(i).String(), "/", "-")
}

// Value is what node i's lease says after so many changes. No two nodes of one crowd have a PublicIP at the
// same time, as long as all are changed about equally often.
func (c *Crowd) value(i int) string {
	g := c.nodes[i].generation
	size := uint64(1) << (32 - c.cfg.PublicIPs.Bits())
	offset := (uint64(i) + uint64(g)*uint64(c.cfg.Nodes)) % size
	ip := address(number(c.cfg.PublicIPs.Addr()) + uint32(offset))
	return Value(ip, c.cfg.VNI, fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", byte(g>>8), byte(g), byte(i>>16), byte(i>>8), byte(i)))
}

// Value is a lease's value as flannel's vxlan backend writes it.
func Value(publicIP netip.Addr, vni uint32, mac string) string {
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":%d,"VtepMAC":"%s"}}`, publicIP, vni, mac)
}

// Fill gives a lease to every node that has none.
func (c *Crowd) Fill(ctx context.Context) error {
	return c.each(ctx, func(ctx context.Context, i int) error {
		if c.nodes[i].grant != clientv3.NoLease {
			return nil
		}
		return c.appear(ctx, i)
	})
}

// Clear takes every node's lease away.
func (c *Crowd) Clear(ctx context.Context) error {
	return c.each(ctx, func(ctx context.Context, i int) error {
		if c.nodes[i].grant == clientv3.NoLease {
			return nil
		}
		return c.vanish(ctx, i)
	})
}

// each calls do once for every node, for some of them at a time.
func (c *Crowd) each(ctx context.Context, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(hands)
	for i := range c.nodes {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

// appear takes up a lease, as a node does that starts: a grant, and a value that hangs on it.
func (c *Crowd) appear(ctx context.Context, i int) error {
	grant, err := c.cfg.Client.Grant(ctx, int64(TTL/time.Second))
	if err != nil {
		return fmt.Errorf("grant for %s: %w", c.key(i), err)
	}
	c.nodes[i].grant = grant.ID
	return c.put(ctx, i)
}

func (c *Crowd) put(ctx context.Context, i int) error {
	if _, err := c.cfg.Client.Put(ctx, c.key(i), c.value(i), clientv3.WithLease(c.nodes[i].grant)); err != nil {
		return fmt.Errorf("put %s: %w", c.key(i), err)
	}
	return nil
}

// vanish ends a lease as if its time had come.
func (c *Crowd) vanish(ctx context.Context, i int) error {
	if _, err := c.cfg.Client.Revoke(ctx, c.nodes[i].grant); err != nil {
		return fmt.Errorf("revoke the grant of %s: %w", c.key(i), err)
	}
	c.nodes[i].grant = clientv3.NoLease
	return nil
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
