// Package crowd is nodes that exist in etcd alone: as many leases as asked for, as flannel's nodes with the
// vxlan backend write them, each with a grant of its own; and changes of them at a steady rate. For muslin
// and etcd it makes no difference that nobody stands behind them.
//
//	c, err := crowd.New(crowd.Config{Client: client, Nodes: 10_000})
//	err = c.Fill(ctx)
//	r, err := c.Churn(ctx, 1000)   // changes a second, until ctx ends
//	err = c.Clear(ctx)
//
// It knows flannel's schema by heart rather than by muslin's lease package, so that the two check each other.
package crowd
