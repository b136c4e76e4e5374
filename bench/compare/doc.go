// Package compare measures muslin side by side with plain routing, the kernel's own VXLAN and other overlays:
// the same flows between the same two pods, in labs on one machine.
//
//	pod ─ cni0 ─ host 1 ─ eth0 ──┐
//	              system         switch      one such lab for each system,
//	              system         │           all side by side for the whole run
//	pod ─ cni0 ─ host 2 ─ eth0 ──┘
//
// iperf3 and sockperf do the measuring; this room sets the systems up, asks for each figure in turn and counts
// processor time. A machine's speed drifts within minutes, so nothing is compared across time: in each round a
// figure is taken of every system, one right after the other and in an order that rotates, and ratios are made
// of figures of one round. What is reported is the median of the rounds, with the lowest and the highest.
//
// The room never measures by its own code, never leaves out what it could not measure, and draws nothing:
// bench/plot does that.
package compare
