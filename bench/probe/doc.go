// Package probe sends numbered datagrams at a steady rate from one node of a lab to another, and knows of
// each whether it was lost, doubled or overtaken, and when: what a fault costs, in packets and in time.
//
//	p, err := probe.Start(ctx, probe.Config{From: a.Node, To: b.Node, Addr: b.Addr})
//	…the fault…
//	r := p.Stop()   // r.Err, r.Lost, r.Duplicated, r.Reordered, r.Gaps
//
// A loss is a loss on the way, never the probe's own: the receiver's buffer holds minutes, the kernel's count
// of what did not fit into it is read at the end, and a sender that was kept off the processor sends later
// rather than more at once. The package judges nothing: how many losses are too many is its caller's to say.
package probe
