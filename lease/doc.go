// Package lease gets and keeps this node's subnet, and turns everybody's leases into the peers of the
// data path's FIB.
//
// It speaks flannel's lease schema: the network's config, the lease keys and values, the rules by which
// a subnet is chosen, and the subnet file that container runtimes read. The store behind it is an
// interface (Store) with two implementations: memory, in this package, and etcd, in lease/etcd.
//
//	Store ─ Keeper          one key: ours. Acquire, renew, defend.
//	Store ─ Feed ─ Keeper   one list and one watch, for both: what happens to our key,
//	             ─ Watcher  and all keys. Leases to fib.Table, at each change.
//	file  ─ Static          the Watcher's part without a store, from a peers file.
//
// The package reads the clock and two small files. It never sees a packet or a socket, never knows
// etcd, and never writes anything but leases among the leases.
package lease
