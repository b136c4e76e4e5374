//go:build linux

package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	sysctlRoot    = "/proc/sys/net"
	ipForward     = sysctlRoot + "/ipv4/ip_forward"
	allRedirects  = sysctlRoot + "/ipv4/conf/all/accept_redirects"
	forwardOfEach = sysctlRoot + "/ipv4/conf/*/forwarding"

	ip6Forward     = sysctlRoot + "/ipv6/conf/all/forwarding"
	forward6OfEach = sysctlRoot + "/ipv6/conf/*/forwarding"
	addrGenMode    = "/addr_gen_mode"
	// acceptRAThough is accept_ra's value for an interface on which router advertisements count although it forwards
	// (ip-sysctl.rst); since 2.6.36.
	acceptRAThough = "2"
)

// sysctl is a kernel switch, what it was and what we make it. Set is "" for a switch that the kernel
// turns by itself along with another.
type sysctl struct {
	Path string `json:"path"`
	Was  string `json:"was"`
	Set  string `json:"set,omitempty"`
}

// family is "ipv4" or "ipv6".
func (s sysctl) family() string {
	family, _, _ := strings.Cut(strings.TrimPrefix(s.Path, sysctlRoot+"/"), "/")
	return family
}

// keepsRouters reports whether it is what must come before forwarding, lest the host lose its default route.
func (s sysctl) keepsRouters() bool {
	return strings.HasSuffix(s.Path, "/accept_ra") && s.Set == acceptRAThough
}

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(path, value string) error {
	if conf, ok := strings.CutSuffix(path, addrGenMode); ok {
		return writeAddrGenMode(filepath.Base(conf), value)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// writeAddrGenMode asks by netlink (since 3.17: bc91b0f07ada): written to /proc, the mode gives a device that is down
// an address at once.
func writeAddrGenMode(device, value string) error {
	l, err := LinkNamed(device)
	if err != nil || l == nil {
		return err
	}
	return netlink.LinkSetIP6AddrGenMode(l, number(value))
}

// forwardingSysctls is the switch for forwarding, when it is off, and what the kernel turns along with
// it: every interface's own switch, and accept_redirects the other way (inet_forward_change in
// net/ipv4/devinet.c). Turned back, it would turn all of them off, whatever they were.
func forwardingSysctls() (main, along []sysctl, err error) {
	was, err := readSysctl(ipForward)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", ipForward, err)
	}
	if was == "1" {
		return nil, nil, nil
	}
	paths, _ := filepath.Glob(forwardOfEach)
	for _, p := range append(paths, allRedirects) {
		if value, err := readSysctl(p); err == nil {
			along = append(along, sysctl{Path: p, Was: value})
		}
	}
	return []sysctl{{Path: ipForward, Was: was, Set: "1"}}, along, nil
}

// forwarding6Sysctls is the same for IPv6, where one switch turns those of all interfaces. Where an interface
// forwards, its router advertisements no longer count, and the default routes that came by them go at once
// (rt6_purge_dflt_routers in net/ipv6/route.c), unless its accept_ra is 2. So that comes first, for the underlay's
// interface and every other one that has a route by a router advertisement now.
func forwarding6Sysctls(underlay string) (main, along []sysctl, err error) {
	was, err := readSysctl(ip6Forward)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w; this kernel has no IPv6: boot it without ipv6.disable=1, or set EnableIPv6 to false in the network config", ip6Forward, err)
	}
	if was == "1" {
		return nil, nil, nil
	}
	advertised, err := advertisedLinks()
	if err != nil {
		return nil, nil, err
	}
	if underlay != "" && !slices.Contains(advertised, underlay) {
		advertised = append(advertised, underlay)
	}
	for _, name := range advertised {
		conf := sysctlRoot + "/ipv6/conf/" + name
		accept, err := readSysctl(conf + "/accept_ra")
		forwards, _ := readSysctl(conf + "/forwarding")
		if err == nil && accept == "1" && forwards == "0" {
			main = append(main, sysctl{Path: conf + "/accept_ra", Was: accept, Set: acceptRAThough})
		}
	}
	paths, _ := filepath.Glob(forward6OfEach)
	for _, p := range paths {
		if value, err := readSysctl(p); err == nil && p != ip6Forward {
			along = append(along, sysctl{Path: p, Was: value})
		}
	}
	return append(main, sysctl{Path: ip6Forward, Was: was, Set: "1"}), along, nil
}

// advertisedLinks names the devices that a route leads to which came by a router advertisement.
func advertisedLinks() ([]string, error) {
	main, err := mainRoutes(unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	all, err := links()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range all {
		if slices.ContainsFunc(main, func(r netlink.Route) bool { return r.Protocol == unix.RTPROT_RA && r.LinkIndex == l.Attrs().Index }) {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}

// deviceSysctls are the TUN's own switches that are not yet as they should be.
//
// rp_filter: the effective value is the larger of conf/all and the device's (ip-sysctl.rst), and a new
// device starts with conf/default. Strict (1) drops a packet whose source is routed out of another
// device. That happens to an honest packet when the way back to its sender does not lead through the
// TUN, as with a route straight to a neighbour. The source was checked against the sender's lease
// before the packet came here, so the loose check (2) loses nothing.
//
// accept_local: our ICMP errors come in through the TUN with the TUN's own address as their source, as a
// router's do. Without this the kernel takes them for martians. Packets from the network cannot use it: an
// inner source in our own subnet, or outside the overlay, never gets past the VTEP, whatever the source
// check.
//
// ignore_routes_with_linkdown: while the daemon is away, its persistent TUN has no carrier. Its route must stay
// nevertheless, so that what is meant for the overlay is dropped there and does not take the default route.
//
// disable_ipv6: where the overlay carries IPv4 only, without this the kernel gives the TUN a link-local
// address and sends router solicitations and MLD reports into it. Where it carries IPv6, the host's default may be
// that new devices do not. Then addr_gen_mode 1 ("none", since 4.11: d35a00b8e33d) saves the link-local address,
// and with it the solicitations, which leaves two MLD reports from a router; and accept_ra 0 says that no router
// speaks from there.
func deviceSysctls(tun string, four, six bool) []sysctl {
	var out []sysctl
	if four {
		out = deviceSysctls4(tun)
	}
	want6 := func(name, value string) {
		path := sysctlRoot + "/ipv6/conf/" + tun + "/" + name
		if was, err := readSysctl(path); err == nil && was != value {
			out = append(out, sysctl{Path: path, Was: was, Set: value})
		}
	}
	if !six {
		want6("disable_ipv6", "1")
		return out
	}
	want6("addr_gen_mode", "1")
	want6("accept_ra", "0")
	want6("ignore_routes_with_linkdown", "0")
	want6("disable_ipv6", "0")
	return out
}

func deviceSysctls4(tun string) []sysctl {
	var out []sysctl
	own := sysctlRoot + "/ipv4/conf/" + tun + "/rp_filter"
	all, _ := readSysctl(sysctlRoot + "/ipv4/conf/all/rp_filter")
	if was, err := readSysctl(own); err == nil && max(number(all), number(was)) == 1 {
		out = append(out, sysctl{Path: own, Was: was, Set: "2"})
	}
	local := sysctlRoot + "/ipv4/conf/" + tun + "/accept_local"
	if was, err := readSysctl(local); err == nil && was != "1" {
		out = append(out, sysctl{Path: local, Was: was, Set: "1"})
	}
	ignore := sysctlRoot + "/ipv4/conf/" + tun + "/ignore_routes_with_linkdown" // since 4.3
	if was, err := readSysctl(ignore); err == nil && was != "0" {
		out = append(out, sysctl{Path: ignore, Was: was, Set: "0"})
	}
	return out
}

// StrictReversePath says that the kernel checks strictly what comes in by an interface: it drops a packet whose
// sender it would answer by another one (rp_filter, see deviceSysctls). It returns the switch as sysctl(8) names it
// with slashes, or "" where the check is loose or off.
func StrictReversePath(iface string) string {
	const file = "/rp_filter"
	own, _ := readSysctl(sysctlRoot + "/ipv4/conf/" + iface + file)
	all, _ := readSysctl(sysctlRoot + "/ipv4/conf/all" + file)
	if max(number(all), number(own)) != 1 {
		return ""
	}
	return "net/ipv4/conf/" + iface + file
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// restore puts a switch back. It leaves one alone that somebody has turned since, and one that is gone
// with its device. done says whether it turned it.
func (s sysctl) restore() (done bool, err error) {
	now, err := readSysctl(s.Path)
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", s.Path, err)
	}
	if now == s.Was || s.Set != "" && now != s.Set {
		return false, nil
	}
	if err := writeSysctl(s.Path, s.Was); err != nil {
		return false, fmt.Errorf("set %s to %s: %w; set it by hand", s.Path, s.Was, err)
	}
	return true, nil
}
