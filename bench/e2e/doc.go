// Package e2e tests muslin from outside: the built binary, in the hosts and pods of bench/lab, against
// the kernel's own VXLAN device, a real etcd server, tcpdump and iperf3. It never calls the daemon's own
// packages, so that nothing but the daemon's behaviour can make a test pass.
//
// The tests need root and the tools that they name; without them they skip, or fail where the
// environment variable CI is set. MUSLIN_BIN names a binary to test instead of one built from this tree
// (bench/labtest).
//
// On a kernel in QEMU (bench/vm) MUSLIN_SLOW says by what factor the machine is slower, and MUSLIN_NETEM that the
// kernel's network emulator has to be there. Where bench/oldkernel plays an older kernel for muslin,
// MUSLIN_OLDKERNEL names it, and lacks says what it has not.
//
// MUSLIN_FIREWALLD is where Debian's firewalld was unpacked (`make deps-firewalld`), or none. MUSLIN_DOCKERD names a
// dockerd to run in the place of what was recorded of one.
package e2e
