// Package rescue breaks the data path of flannel nodes in the lab in several ways, has `muslin rescue` take over under traffic and
// `muslin rescue --undo` give back, and measures how long each takes.
//
// The nodes are kernel VXLAN devices set up as flannel sets them up; where MUSLIN_FLANNELD names a real flanneld (v0.26.7,
// `make build/flanneld`), it sets them up itself. It tests the built binary from outside, in the hosts and pods of bench/lab.
package rescue
