// Package restart ends, kills and replaces daemons under a running network, and counts what that costs.
//
// It tests the built binary from outside, in the hosts and pods of bench/lab.
package restart
