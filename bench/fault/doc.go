// Package fault breaks things under a running network and counts what that costs: a probe of 1,000 numbered
// datagrams a second each way between two pods goes through every fault, and each test says how many may be
// lost (none, but where it says why), within what time the peers are right again, and what the log and
// `muslin status` said.
//
// It tests the built binary from outside, in the hosts and pods of bench/lab, against a real etcd cluster of
// three members. It needs root, and the tools that it names (see bench/labtest).
//
// A lease lives for a day, so that what happens when one runs out cannot be waited for. The tests that need
// it start their daemons with the hidden flag --subnet-lease-ttl, which makes it seconds; everything else is
// as it is always. The other way, a clock that can be turned, is what the unit tests of package lease have:
// it would not move etcd's.
package fault
