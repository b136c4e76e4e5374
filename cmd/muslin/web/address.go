package web

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// ParseAddr reads --web: a port of the loopback address, or ADDRESS:PORT. Empty is the zero value: no page.
func ParseAddr(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	wrong := func(why string) (netip.AddrPort, error) {
		return netip.AddrPort{}, fmt.Errorf("--web %q: %s: want a port (then it is on 127.0.0.1), or ADDRESS:PORT", s, why)
	}
	host, port, err := "127.0.0.1", s, error(nil)
	if strings.Contains(s, ":") {
		if host, port, err = net.SplitHostPort(s); err != nil {
			return wrong("no address with a port")
		}
	}
	switch host {
	case "", "localhost": // a page that answers to everybody should be somebody's decision
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return wrong(host + " is no address")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return wrong(fmt.Sprintf("%q is no port from 1 to 65535", port))
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// CheckToken refuses an address that others than this host reach, without a token.
func CheckToken(addr netip.AddrPort, tokenFile string) error {
	switch {
	case !addr.IsValid() && tokenFile != "":
		return fmt.Errorf("--web-token-file is for the page of --web: give both, or leave it out")
	case addr.IsValid() && !addr.Addr().IsLoopback() && tokenFile == "":
		return fmt.Errorf("--web %s: others than this host reach that address: give --web-token-file FILE as well (it is made if it does not exist), or a port alone, which others reach with ssh -L", addr)
	}
	return nil
}

// isLoopbackName is whether the Host of a request, with or without a port, names this very host. The port is not looked
// at: with ssh -L it is another one.
func isLoopbackName(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"))
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.IsLoopback()
}
