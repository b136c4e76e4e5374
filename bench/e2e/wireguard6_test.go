//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
)

const (
	wireguardPort6 = 51821
	foreignSubnet6 = "fd00:244:0:c8::/64"
	presharedKey6  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

// wireguard6 is a row of TestMatrix: a wireguard network with IPv6, by its Mode, with the engine or the kernel's device.
type wireguard6 struct {
	name   string
	flag   string // --wireguard's value
	mode   string // the config's Mode
	alone  bool   // IPv6 without IPv4, and with a preshared key and keepalives
	kernel bool   // the other nodes have the kernel's WireGuard
}

func wireguard6Rows(hasKernel bool) (rows []wireguard6) {
	flags := [][2]string{{"in the daemon", "--wireguard=userspace"}}
	if hasKernel {
		flags = append(flags, [2]string{"the kernel's", "--wireguard=kernel"})
	}
	for _, f := range flags {
		for _, mode := range []string{"separate", "auto", "ipv4", "ipv6"} {
			rows = append(rows, wireguard6{name: fmt.Sprintf("wireguard, %s, IPv4 and IPv6, Mode %s", f[0], mode), flag: f[1], mode: mode, kernel: hasKernel})
		}
		rows = append(rows, wireguard6{name: "wireguard, " + f[0] + ", IPv6 alone", flag: f[1], mode: "separate", alone: true, kernel: hasKernel})
	}
	return rows
}

// outer is where a node is reached with packets of an inner family.
func (w *wireguard6) outer(h *lab.Host, inner6 bool) netip.AddrPort {
	switch {
	case w.mode == "ipv4", w.mode == "auto": // both nodes have public addresses of IPv4, as 198.18.0.0/15 counts
		return netip.AddrPortFrom(h.Addr, wireguardPort)
	case w.mode == "ipv6":
		return netip.AddrPortFrom(hostAddr6(h), wireguardPort)
	case inner6:
		return netip.AddrPortFrom(hostAddr6(h), wireguardPort6)
	}
	return netip.AddrPortFrom(h.Addr, wireguardPort)
}

// subnets are those of a node, of IPv4, unless it has none, and of IPv6.
func (w *wireguard6) subnets(m *lab.Muslin, t *testing.T) []netip.Prefix {
	n := status(t, m).Node
	six := netip.MustParsePrefix(n.Subnet6)
	if w.alone {
		return []netip.Prefix{six}
	}
	return []netip.Prefix{n.Subnet, six}
}

// foreign6 is a node with WireGuard devices as flannel makes them: one for both families, or one for each with the same key.
type foreign6 struct {
	devices []*lab.WireGuard // by family where there are two
	subnets []netip.Prefix
}

func (f *foreign6) of(subnet netip.Prefix) *lab.WireGuard {
	if subnet.Addr().Is6() {
		return f.devices[len(f.devices)-1]
	}
	return f.devices[0]
}

func (w *wireguard6) startForeign(t *testing.T, h *lab.Host, subnets []netip.Prefix, daemons []*lab.Muslin) *foreign6 {
	t.Helper()
	f := &foreign6{subnets: subnets}
	add := func(suffix string, port int) {
		device := fmt.Sprintf("wg-%s-%d%s", h.Lab().ID(), h.Number, suffix)
		var g *lab.WireGuard
		if w.kernel {
			g = must(h.AddWireGuard(t.Context(), device, port))(t)
		} else {
			g = must(h.StartWireGuard(t.Context(), "wireguard-go", device, port))(t)
		}
		if len(f.devices) > 0 {
			if err := g.UseKey(t.Context(), f.devices[0].Key); err != nil {
				t.Fatal(err)
			}
		}
		f.devices = append(f.devices, g)
	}
	switch {
	case w.mode != "separate":
		add("", wireguardPort)
	case w.alone:
		add("", wireguardPort6)
	default:
		add("", wireguardPort)
		add("6", wireguardPort6)
	}
	for _, s := range subnets {
		device, whole := f.of(s).Device, network
		if s.Addr().Is6() {
			whole = network6
		}
		address := netip.PrefixFrom(s.Addr(), s.Addr().BitLen()).String()
		runIn(t, h.Node, "ip", "link", "set", device, "up", "mtu", fmt.Sprint(wireguardMTU))
		runIn(t, h.Node, "ip", "addr", "add", address, "dev", device)
		runIn(t, h.Node, "ip", "route", "add", whole, "dev", device)
	}
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := h.Sysctl(path, "1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range daemons {
		theirs, key := w.subnets(m, t), status(t, m).Node.PublicKey
		var text []string
		for _, s := range theirs {
			text = append(text, s.String())
		}
		if len(f.devices) == 1 {
			w.peer(t, f.devices[0], key, strings.Join(text, ","), w.outer(m.Host, true))
			continue
		}
		for i, s := range theirs {
			w.peer(t, f.of(s), key, text[i], w.outer(m.Host, s.Addr().Is6()))
		}
	}
	return f
}

func (w *wireguard6) peer(t *testing.T, g *lab.WireGuard, key, allowed string, at netip.AddrPort) {
	t.Helper()
	args := []string{"set", g.Device, "peer", key, "allowed-ips", allowed, "endpoint", at.String()}
	if w.alone {
		file := filepath.Join(t.TempDir(), "psk")
		if err := os.WriteFile(file, []byte(presharedKey6), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "preshared-key", file)
	}
	must(g.WG(t.Context(), args...))(t)
}

// lease is key and value of a node's, as flannel writes them: without Port, which its nodes do not read.
func (w *wireguard6) lease(h *lab.Host, subnets []netip.Prefix, publicKey string) (key, value string) {
	data := fmt.Sprintf(`{"PublicKey":%q}`, publicKey)
	six := subnets[len(subnets)-1]
	if w.alone {
		return "/subnets/0.0.0.0-0&" + strings.ReplaceAll(six.String(), "/", "-"),
			fmt.Sprintf(`{"PublicIP":"0.0.0.0","PublicIPv6":%q,"BackendType":"wireguard","BackendV6Data":%s}`, hostAddr6(h), data)
	}
	return dualKey(subnets[0], six), fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"wireguard","BackendData":%s,"BackendV6Data":%s}`, h.Addr, hostAddr6(h), data, data)
}

// run is the row:
//
//	p1a ── cni0 ─ h1 (muslin, etcd) ─┐         ┌─ h3 (WireGuard as flannel sets it up) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ───────┴── br0 ──┴─ h4 (WireGuard without a lease)
func (w *wireguard6) run(t *testing.T, m *matrix) {
	lab.RequireTool(t, "tcpdump", "etcdctl", "wg", "wireguard-go", "nsenter", "unshare", "ping")
	l := newLab(t, 4)
	underlay6(t, l)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	store := startEtcd(t, h1)
	families, backend := `"Network":"`+network+`",`, `"Type":"wireguard","Mode":"`+w.mode+`"`
	if w.alone {
		families, backend = `"EnableIPv4":false,`, backend+`,"PSK":"`+presharedKey6+`","PersistentKeepaliveInterval":1`
	}
	store.Config(t, `{`+families+`"EnableIPv6":true,"IPv6Network":"`+network6+`","Backend":{`+backend+`}}`)
	before := snapshot(t, h2.Node)
	flags := []string{"--etcd-endpoints", endpoint(h1), w.flag}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	halves := map[bool]int{true: 1, false: 2}[w.alone]
	waitPeers(t, m1, halves)
	waitPeers(t, m2, halves)
	s1, s2 := w.subnets(m1, t), w.subnets(m2, t)
	n1 := status(t, m1).Node
	key, value := w.lease(h1, s1, n1.PublicKey)
	value = strings.Replace(value, `"BackendData":{"PublicKey":"`+n1.PublicKey+`"}`, fmt.Sprintf(`"BackendData":{"PublicKey":"%s","Port":%d}`, n1.PublicKey, wireguardPort), 1)
	port6 := w.outer(h1, true).Port()
	value = strings.Replace(value, `"BackendV6Data":{"PublicKey":"`+n1.PublicKey+`"}`, fmt.Sprintf(`"BackendV6Data":{"PublicKey":"%s","Port":%d}`, n1.PublicKey, port6), 1)
	if got := store.Get(t, key); got != value {
		t.Errorf("our lease is %s, want %s", got, value)
	}
	if n1.MTU != wireguardMTU || n1.Port6 != port6 || n1.PublicIPv6 != hostAddr6(h1).String() {
		t.Errorf("%+v", n1)
	}

	a, b := w.pods(t, h1, s1), w.pods(t, h2, s2)
	for i := range a {
		w.check(t, m1, a[i], b[i])
	}
	m.note(w.name, "muslin ↔ muslin", !t.Failed())

	theirs := []netip.Prefix{netip.MustParsePrefix(foreignSubnet6)}
	if !w.alone {
		theirs = append([]netip.Prefix{unleased(t, m1, m2)}, theirs...)
	}
	f := w.startForeign(t, h3, theirs, []*lab.Muslin{m1, m2})
	key, value = w.lease(h3, theirs, f.devices[0].PublicKey())
	store.Do(t, "put", prefix+key, value)
	waitPeers(t, m1, 2*halves)
	waitPeers(t, m2, 2*halves)
	c := w.pods(t, h3, theirs)
	for i := range a {
		w.check(t, m1, a[i], c[i])
		w.expectSession(t, m1, theirs[i], h3, f.devices[0].PublicKey())
		w.expectSession(t, m1, s2[i], h2, status(t, m2).Node.PublicKey)
	}
	m.note(w.name, "muslin ↔ WireGuard", !t.Failed())
	for reason, n := range status(t, m1).Drops {
		if reason != "tun-overflow" && reason != "link-local" && !slices.Contains(ipv6Drops, reason) && n != 0 {
			t.Errorf("%d packets dropped as %s", n, reason)
		}
	}

	expectWell(t, l)

	if w.mode == "auto" || w.mode == "ipv4" { // whose one tunnel is that of ipv6, but for the addresses
		if err := m2.Stop(); err != nil {
			t.Error(err)
		}
		return
	}
	w.keepsOthersOut(t, l.Host(4), f, []*lab.Muslin{m1, m2}, a[len(a)-1], b[len(b)-1], c[len(c)-1])

	// Replaced, killed, and stopped.
	old := m2
	m2 = launchMuslin(t, h2, append([]string{"--replace"}, flags...)...)
	expectExit(t, old.Proc, 0)
	for i := range a {
		w.eventuallyPings(t, a[i], b[i])
	}
	m2.Kill()
	m2 = startMuslin(t, h2, flags...)
	for i := range a {
		w.eventuallyPings(t, a[i], b[i])
		w.eventuallyPings(t, c[i], b[i])
	}
	if w.mode == "separate" && !w.alone { // and what a killed daemon left is gone when the Mode is another
		m2.Kill()
		store.Config(t, `{`+families+`"EnableIPv6":true,"IPv6Network":"`+network6+`","Backend":{`+strings.Replace(backend, "separate", "ipv6", 1)+`}}`)
		m2 = startMuslin(t, h2, flags...)
		eventually(t, lab.Patience(10*time.Second), func() error { // at first it goes by what it knew
			if out, err := m2.Command(t.Context(), "route", c[1].Addr.String()); err != nil || !strings.Contains(out, "leaves by  muslin0 ") {
				return fmt.Errorf("%s, %w", out, err)
			}
			return nil
		})
		runIn(t, h2.Node, "sh", "-c", "! ip link show muslin0-v6")
	}
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	expectAsBefore(t, h2.Node, before)
}

// pods is one pod by its address of each subnet. Where there is no IPv4 it has an address of it that leads nowhere.
func (w *wireguard6) pods(t *testing.T, h *lab.Host, subnets []netip.Prefix) []*lab.Pod {
	t.Helper()
	gateway := netip.MustParsePrefix(fmt.Sprintf("10.250.%d.1/24", h.Number))
	if !w.alone {
		gateway = netip.PrefixFrom(subnets[0].Addr().Next(), subnets[0].Bits())
	}
	p := must(h.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: gateway, MTU: wireguardMTU}))(t)
	six := pod6(t, p, subnets[len(subnets)-1])
	if w.alone {
		return []*lab.Pod{six}
	}
	return []*lab.Pod{p, six}
}

func (w *wireguard6) eventuallyPings(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	if to.Addr.Is4() {
		eventuallyPings(t, from.Node, to.Addr)
		return
	}
	eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, from, to.Addr, 100) })
}

// check wants packets of full length, and a file, between two pods, and what is on the wire to be as `muslin route` says.
func (w *wireguard6) check(t *testing.T, m *lab.Muslin, from, to *lab.Pod) {
	t.Helper()
	for _, way := range [][2]*lab.Pod{{from, to}, {to, from}} {
		w.eventuallyPings(t, way[0], way[1])
		if to.Addr.Is4() {
			expectPings(t, way[0].Node, way[1].Addr, lab.PingOptions{Count: 2, Size: wireguardMTU, DontFragment: true})
		} else if err := ping6(t, way[0], way[1].Addr, wireguardMTU); err != nil {
			t.Error(err)
		}
		copyTCP(t, way[0], way[1], bigFile()/16)
	}
	device := "muslin0"
	if to.Addr.Is6() && w.mode == "separate" && !w.alone {
		device += "-v6"
	}
	said := route(t, m, to.Addr.String())
	if said.Way != "encrypted" || said.Rule != "wireguard" || said.MTU != wireguardMTU || said.Device != device ||
		said.NextHop != w.outer(to.Host, to.Addr.Is6()).String() || len(said.Notes) != 0 {
		t.Errorf("route: %+v; want %s by %s", said, w.outer(to.Host, to.Addr.Is6()), device)
	}
	(&matrixRow{}).checkWire(t, m.Host, from, to, to.Host, said)
}

// expectSession wants status to show one.
func (w *wireguard6) expectSession(t *testing.T, m *lab.Muslin, subnet netip.Prefix, h *lab.Host, key string) {
	t.Helper()
	p, _ := status(t, m).Peer(subnet)
	if p.Way != "encrypted" || p.PublicKey != key || p.LastHandshake == nil || time.Since(*p.LastHandshake) > time.Hour ||
		p.Endpoint != w.outer(h, subnet.Addr().Is6()).String() || p.TxBytes == 0 || p.RxBytes == 0 {
		t.Errorf("peer %s: %+v", subnet, p)
	}
}

// keepsOthersOut wants that over IPv6 nobody gets a packet to pod b who has not the key of the lease whose address it is.
func (w *wireguard6) keepsOthersOut(t *testing.T, h4 *lab.Host, f *foreign6, daemons []*lab.Muslin, a, b, c *lab.Pod) {
	t.Helper()
	inbox := listenUDP(t, b.Node, netip.AddrPortFrom(b.Addr, 0))
	at := netip.MustParseAddrPort(inbox.LocalAddr().String())
	secret := []byte("nobody is to read this")
	send := func(from *lab.Node, source netip.Addr) {
		t.Helper()
		conn := listenUDP(t, from, netip.AddrPortFrom(source, 0))
		for range 3 {
			if _, err := conn.WriteToUDPAddrPort(secret, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrived := func(patience time.Duration) (n int) {
		buf := make([]byte, 2048)
		for {
			inbox.SetReadDeadline(time.Now().Add(lab.Patience(patience)))
			got, err := inbox.Read(buf)
			if err != nil {
				return n
			}
			if bytes.Equal(buf[:got], secret) {
				n++
			}
		}
	}
	// From h4: a packet as it is, to the port, and a WireGuard of a key that no lease has.
	to := w.outer(b.Host, true)
	raw := listenUDP(t, h4.Node, netip.AddrPortFrom(w.outer(h4, true).Addr(), 0))
	inner := innerUDP6(t, netip.AddrPortFrom(a.Addr, 9), at, secret)
	for _, datagram := range [][]byte{inner, append([]byte{4, 0, 0, 0}, inner...)} {
		if _, err := raw.WriteToUDPAddrPort(datagram, to); err != nil {
			t.Fatal(err)
		}
	}
	subnets := []netip.Prefix{netip.MustParsePrefix("fd00:244:0:c9::/64")}
	if !w.alone {
		subnets = append([]netip.Prefix{netip.MustParsePrefix("10.244.199.0/24")}, subnets...)
	}
	stranger := w.startForeign(t, h4, subnets, daemons)
	send(h4.Node, subnets[len(subnets)-1].Addr())
	// From h3, which has a key, in another's name.
	runIn(t, f.devices[0].Host.Node, "ip", "addr", "add", a.Addr.String()+"/128", "dev", "lo", "nodad")
	send(f.devices[0].Host.Node, a.Addr)
	runIn(t, f.devices[0].Host.Node, "ip", "addr", "del", a.Addr.String()+"/128", "dev", "lo")
	if n := arrived(500 * time.Millisecond); n != 0 {
		t.Errorf("%d datagrams came in", n)
	}
	send(c.Node, c.Addr)
	if n := arrived(500 * time.Millisecond); n != 3 {
		t.Errorf("%d of 3 datagrams of the node with a lease", n)
	}
	g := stranger.devices[len(stranger.devices)-1]
	if out := must(g.WG(t.Context(), "show", g.Device, "latest-handshakes"))(t); strings.Count(out, "\t0\n") != len(daemons) {
		t.Errorf("handshakes of the stranger: %s", out)
	}
}

// A node that has no address of the family that Mode goes over is no peer, and status names why; the others are.
func TestWireGuardModeOfAPeerWithoutIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	leaveIll(l, "the other nodes are leases alone")
	underlay6(t, l)
	h := l.Host(1)
	store := startEtcd(t, h)
	store.Config(t, `{"Network":"`+network+`","EnableIPv6":true,"IPv6Network":"`+network6+`","Backend":{"Type":"wireguard","Mode":"ipv6"}}`)
	m := startMuslin(t, h, "--etcd-endpoints", endpoint(h), "--wireguard=userspace")
	store.Do(t, "put", prefix+"/subnets/10.244.200.0-24", `{"PublicIP":"198.18.0.9","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="}}`)
	store.Do(t, "put", prefix+"/subnets/10.244.201.0-24&fd00:244:0:c9::-64", `{"PublicIP":"198.18.0.10","PublicIPv6":"fd99::10","BackendType":"wireguard","BackendData":{"PublicKey":"3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="},"BackendV6Data":{"PublicKey":"3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="}}`)
	waitPeers(t, m, 2)
	eventually(t, lab.Patience(5*time.Second), func() error {
		if out := must(m.Command(t.Context(), "status"))(t); !strings.Contains(out, "no-endpoint  1") || !strings.Contains(out, "Mode") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if r := route(t, m, "10.244.201.9"); r.NextHop != fmt.Sprintf("[fd99::10]:%d", wireguardPort) {
		t.Errorf("%+v", r)
	}
	if r := route(t, m, "10.244.200.9"); r.Way != "none" {
		t.Errorf("%+v", r)
	}
	expectWords(t, m.Output(), "a lease has no address of the family that Backend.Mode goes over", "mode=ipv6")
}

// innerUDP6 is innerUDP over IPv6.
func innerUDP6(t *testing.T, from, to netip.AddrPort, payload []byte) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
