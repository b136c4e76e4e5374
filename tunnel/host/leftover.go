//go:build linux

package host

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leftover reports whether the TUN device of that name was left by a daemon that had this state directory and
// was killed: the journal there is about this very device, and no process holds it. Such a device can be
// attached to, and Setup takes over what leads to it.
func Leftover(stateDir, tun string) (bool, error) {
	l, err := LinkNamed(tun)
	if err != nil || l == nil {
		return false, err
	}
	if isMarked(l, stateDir) {
		return true, nil
	}
	j, err := readJournal(stateDir)
	if err != nil || j == nil || !j.isOf(l) {
		return false, err
	}
	_, held := attachedBy(l)
	return !held, nil
}

// Types of the overlay's device, as `ip -d link` calls them.
const (
	TypeTUN       = "tun"
	TypeWireGuard = "wireguard"
)

// TypeOf is a device's type; empty: there is no such device, or it cannot be seen.
func TypeOf(name string) string {
	l, err := LinkNamed(name)
	if err != nil || l == nil {
		return ""
	}
	return typeOf(l)
}

// isDevice reports whether it is of a type that the overlay's device may have.
func isDevice(l netlink.Link) bool { return typeOf(l) == TypeTUN || typeOf(l) == TypeWireGuard }

// Mark is an alias for a device that outlives its process from the beginning, as a kernel's WireGuard does, before there is
// a journal of it: it says whose it is (`ip link show`).
func Mark(stateDir string) string { return "muslin " + stateDir }

func isMarked(l netlink.Link, stateDir string) bool {
	return typeOf(l) == TypeWireGuard && l.Attrs().Alias == Mark(stateDir)
}

// DeleteLeftover deletes such a device, which is not as it is wanted.
func DeleteLeftover(tun string) error {
	l, err := LinkNamed(tun)
	if err != nil || l == nil {
		return err
	}
	return netlink.LinkDel(l)
}

// isOf reports whether the journal is about this device, or, with nil, about none.
func (j *journal) isOf(tun netlink.Link) bool {
	if tun == nil {
		return j.Boot == BootID() && j.NetNS == NetNS() && j.TUN.Name == "" && !j.Common
	}
	a := tun.Attrs()
	return j.Boot == BootID() && j.NetNS == NetNS() &&
		j.TUN.Name == a.Name && j.TUN.Index == a.Index && isDevice(tun)
}

// attachedBy is the process that has a TUN device attached, 0 when that cannot be seen from here. A TUN that is up
// has a carrier while a file descriptor is attached, whoever holds it.
func attachedBy(tun netlink.Link) (pid int, held bool) {
	if typeOf(tun) == TypeWireGuard { // which needs none
		return 0, false
	}
	a := tun.Attrs()
	if a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP == 0 {
		return 0, false
	}
	pid, held = tunHolder(a.Name)
	return pid, held || a.Flags&net.FlagUp != 0
}
