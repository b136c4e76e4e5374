// Package systemd tests muslin under a real systemd: the unit that `make install` installs, run by a systemd
// that is the first process of a PID namespace on a host of bench/lab. It kills the daemon there and counts with
// bench/probe what that costs.
//
// That systemd has a root of its own in memory (boot.sh), of the machine sees /usr alone, and that read-only, and
// knows no unit but muslin's.
//
// The tests need root, systemd, and a unified cgroup hierarchy mounted somewhere.
package systemd
