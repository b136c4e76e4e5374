//go:build linux

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	probes "muslin/bench/probe"
)

const (
	wireguardPort = 51820
	wireguardMTU  = 1500 - 80 // flannel's
)

// kernelWireGuard reports whether this kernel has WireGuard.
func kernelWireGuard(t *testing.T) bool {
	t.Helper()
	_, err := newLab(t, 1).Host(1).AddWireGuard(t.Context(), "wg0", wireguardPort)
	if err != nil && !errors.Is(err, lab.ErrNoWireGuard) {
		t.Fatal(err)
	}
	return err == nil
}

// eachWireGuard runs a test with muslin's engine, and with the kernel's WireGuard where there is one. foreign says which
// the other nodes are to have: the kernel's as flannel's have, if that can be, or else the program.
func eachWireGuard(t *testing.T, test func(t *testing.T, flag string, foreignKernel bool)) {
	lab.RequireTool(t, "etcdctl", "wg", "wireguard-go", "nsenter", "unshare")
	has := kernelWireGuard(t)
	engine := "--wireguard=auto" // which comes to the same without the kernel's
	if has {
		engine = "--wireguard=userspace"
	}
	t.Run("engine", func(t *testing.T) {
		t.Parallel()
		test(t, engine, has)
	})
	if has {
		t.Run("kernel", func(t *testing.T) {
			t.Parallel()
			test(t, "--wireguard=kernel", false)
		})
	}
}

// foreign is a node with a WireGuard that is not muslin's, set up as flannel sets up the kernel's device: with the
// base of its subnet, a route for the whole network, and a peer for each lease.
type foreign struct {
	*lab.WireGuard
	subnet netip.Prefix
	pod    *lab.Pod
}

// startForeign joins such a node to the network of the daemons, of which it knows those that there are now.
func startForeign(t *testing.T, h *lab.Host, kernel bool, subnet netip.Prefix, daemons []*lab.Muslin) *foreign {
	t.Helper()
	var w *lab.WireGuard
	device := fmt.Sprintf("wg-%s-%d", h.Lab().ID(), h.Number) // a name in the file system as well
	if kernel {
		w = must(h.AddWireGuard(t.Context(), device, wireguardPort))(t)
	} else {
		w = must(h.StartWireGuard(t.Context(), "wireguard-go", device, wireguardPort))(t)
	}
	for _, command := range []string{
		fmt.Sprintf("ip addr add %s/32 dev %s", subnet.Addr(), device),
		fmt.Sprintf("ip link set %s up mtu %d", device, wireguardMTU),
		fmt.Sprintf("ip route add %s dev %s", network, device),
	} {
		runIn(t, h.Node, strings.Fields(command)...)
	}
	if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	f := &foreign{WireGuard: w, subnet: subnet}
	for _, m := range daemons {
		f.knows(t, m)
	}
	gateway := netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	f.pod = must(h.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: gateway, MTU: wireguardMTU}))(t)
	return f
}

func (f *foreign) knows(t *testing.T, m *lab.Muslin) {
	t.Helper()
	n := status(t, m).Node
	if err := f.AddPeer(t.Context(), n.PublicKey, n.Subnet, netip.AddrPortFrom(n.PublicIP, wireguardPort)); err != nil {
		t.Fatal(err)
	}
}

// value is its lease's, as flannel writes it.
func (f *foreign) value() string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":%q,"Port":%d}}`,
		f.Host.Addr, f.PublicKey(), wireguardPort)
}

// unleased is a subnet of the network that none of the daemons has.
func unleased(t *testing.T, daemons ...*lab.Muslin) netip.Prefix {
	t.Helper()
	taken := make(map[netip.Prefix]bool)
	for _, m := range daemons {
		taken[status(t, m).Node.Subnet] = true
	}
	for i := byte(200); ; i++ {
		if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, i, 0}), 24); !taken[p] {
			return p
		}
	}
}

// Two muslin nodes and one with a WireGuard of another make, in one network:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ─┐         ┌─ h3 (foreign) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ────────────────┴── br0 ──┘
func TestWireGuard(t *testing.T) {
	t.Parallel()
	eachWireGuard(t, testWireGuard)
}

func testWireGuard(t *testing.T, flag string, foreignKernel bool) {
	l := newLab(t, 3)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	before := snapshot(t, h2.Node)
	m1 := startMuslin(t, h1, flag, "--embedded-etcd", "--network", network, "--backend", "wireguard")
	m2 := startMuslin(t, h2, flag, "--etcd-endpoints", endpoint(h1))
	s1, s2 := status(t, m1), status(t, m2)
	store := labtest.EtcdOn(h1)
	if got, want := store.Get(t, leaseKey(s1.Node.Subnet)), fmt.Sprintf(
		`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":%q,"Port":51820}}`, h1.Addr, s1.Node.PublicKey); got != want {
		t.Errorf("our lease is %s, want %s", got, want)
	}
	f := startForeign(t, h3, foreignKernel, unleased(t, m1, m2), []*lab.Muslin{m1, m2})
	store.Do(t, "put", prefix+leaseKey(f.subnet), f.value())
	waitPeers(t, m1, 2)
	waitPeers(t, m2, 2)
	a, b, c := addPod(t, m1, "a"), addPod(t, m2, "a"), f.pod

	whole := lab.PingOptions{Count: 3, Size: wireguardMTU, DontFragment: true}
	for _, way := range [][2]*lab.Pod{{a, b}, {b, a}, {a, c}, {c, a}, {b, c}} {
		eventuallyPings(t, way[0].Node, way[1].Addr)
		expectPings(t, way[0].Node, way[1].Addr, whole)
		copyTCP(t, way[0], way[1], bigFile())
	}
	// A node answers at the base of its subnet, as flannel's does.
	expectPing(t, c.Node, s1.Node.Subnet.Addr(), 1)
	expectPing(t, a.Node, f.subnet.Addr(), 1)

	s := status(t, m1)
	if s.Node.MTU != wireguardMTU || s.Node.Backend != "wireguard" || s.Node.Port != wireguardPort || len(s.Warnings) > 1 {
		t.Errorf("status: %+v, %q", s.Node, s.Warnings)
	}
	if n := must(m1.PodNetwork())(t); n.MTU != wireguardMTU {
		t.Errorf("subnet file: %+v", n)
	}
	for _, want := range []struct {
		subnet netip.Prefix
		h      *lab.Host
		key    string
	}{{s2.Node.Subnet, h2, s2.Node.PublicKey}, {f.subnet, h3, f.PublicKey()}} {
		p, _ := s.Peer(want.subnet)
		if p.Way != "encrypted" || p.WayRule != "wireguard" || p.PublicKey != want.key || p.LastHandshake == nil || time.Since(*p.LastHandshake) > time.Hour ||
			p.Endpoint != fmt.Sprintf("%s:%d", want.h.Addr, wireguardPort) || p.TxBytes == 0 || p.RxBytes == 0 {
			t.Errorf("peer: %+v", p)
		}
	}
	if r := route(t, m2, c.Addr.String()); r.Way != "encrypted" || r.Rule != "wireguard" || r.Device != "muslin0" ||
		r.NextHop != fmt.Sprintf("%s:%d", h3.Addr, wireguardPort) || r.MTU != wireguardMTU || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}
	expectNoDrops(t, m1)

	// The key is made once, and nobody else's to read.
	key := filepath.Join(m2.StateDir, "wireguard-key")
	if info := must(os.Stat(key))(t); info.Mode() != 0o400 {
		t.Errorf("mode of the key's file: %v", info.Mode())
	}
	secret := strings.TrimSpace(string(must(os.ReadFile(key))(t)))
	for what, text := range map[string]string{"log": m2.Output(), "status": must(m2.Command(t.Context(), "status", "--output", "json"))(t)} {
		if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", must(base64.StdEncoding.DecodeString(secret))(t))) {
			t.Errorf("the key stands in the %s:\n%s", what, text)
		}
	}

	expectWell(t, l)

	// A peer leaves the table with its lease, and nothing of it is let in any more.
	store.Do(t, "del", prefix+leaseKey(f.subnet))
	if err := f.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPeersSlowly(t, m1, 1)
	if r := route(t, m1, c.Addr.String()); r.Way != "none" {
		t.Errorf("%+v", r)
	}

	// Killed and started again, it has the same key and the same subnet; what its peer goes on sending arrives at once.
	m2.Kill()
	m2 = startMuslin(t, h2, flag, "--etcd-endpoints", endpoint(h1))
	began := time.Now()
	eventuallyPings(t, a.Node, b.Addr)
	if took := time.Since(began); took > lab.Patience(3*time.Second) {
		t.Errorf("heard again after %v", took)
	}
	if got := status(t, m2).Node; got.PublicKey != s2.Node.PublicKey || got.Subnet != s2.Node.Subnet {
		t.Errorf("after a restart: %+v", got)
	}
	// Killed, and started to do it the other way: as this process, or as this kernel.
	m2.Kill()
	m2 = startMuslin(t, h2, "--etcd-endpoints", endpoint(h1), map[string]string{"--wireguard=kernel": "--wireguard=userspace", "--wireguard=userspace": "--wireguard=auto", "--wireguard=auto": "--wireguard=userspace"}[flag])
	eventuallyPings(t, a.Node, b.Addr)
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	expectAsBefore(t, h2.Node, before)
	if flag != "--wireguard=kernel" {
		return
	}
	// What a daemon leaves that is killed before it has a lease: a device of the kernel's, and no journal.
	leave := func() {
		runIn(t, h2.Node, "ip", "link", "add", "muslin0", "type", "wireguard")
		runIn(t, h2.Node, "ip", "link", "set", "muslin0", "alias", "muslin "+m2.StateDir)
	}
	leave()
	out := must(h2.Run(t.Context(), labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir))(t)
	expectWords(t, out, "muslin0")
	expectAsBefore(t, h2.Node, before)
	leave()
	m2 = startMuslin(t, h2, flag, "--etcd-endpoints", endpoint(h1))
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	expectAsBefore(t, h2.Node, before)
}

// waitPeersSlowly waits for a peer to go whose lease was deleted while it was alive.
func waitPeersSlowly(t *testing.T, m *lab.Muslin, want int) {
	t.Helper()
	eventually(t, lab.Patience(90*time.Second), func() error {
		if n := len(status(t, m).Peers); n != want {
			return fmt.Errorf("%d peers, want %d", n, want)
		}
		return nil
	})
}

// Nobody without the key of a lease gets a packet in, and nobody on the way sees one. h3 has a lease, and h4 has none but
// knows everything that is no secret:
//
//	p1a ── cni0 ─ h1 (muslin) ─┐         ┌─ h3 (wireguard-go, with a lease)
//	p2a ── cni0 ─ h2 (muslin) ─┴── br0 ──┴─ h4 (wireguard-go, without)
func TestWireGuardKeepsOthersOut(t *testing.T) {
	t.Parallel()
	eachWireGuard(t, testWireGuardKeepsOthersOut)
}

func testWireGuardKeepsOthersOut(t *testing.T, flag string, foreignKernel bool) {
	lab.RequireTool(t, "tcpdump")
	l := newLab(t, 4)
	h1, h2 := l.Host(1), l.Host(2)
	m1 := startMuslin(t, h1, flag, "--embedded-etcd", "--network", network, "--backend", "wireguard")
	m2 := startMuslin(t, h2, flag, "--etcd-endpoints", endpoint(h1))
	f := startForeign(t, l.Host(3), foreignKernel, unleased(t, m1, m2), []*lab.Muslin{m1, m2})
	store := labtest.EtcdOn(h1)
	store.Do(t, "put", prefix+leaseKey(f.subnet), f.value())
	waitPeers(t, m1, 2)
	waitPeers(t, m2, 2)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	eventuallyPings(t, a.Node, b.Addr)
	eventuallyPings(t, f.pod.Node, b.Addr)

	inbox := listenUDP(t, b.Node, netip.AddrPortFrom(b.Addr, 0))
	at := inbox.LocalAddr().(*net.UDPAddr).AddrPort()
	secret := bytes.Repeat([]byte("the cleartext of this test "), 10)
	send := func(from *lab.Node, what []byte) {
		t.Helper()
		conn := listenUDP(t, from, netip.AddrPort{})
		if _, err := conn.WriteToUDPAddrPort(what, at); err != nil {
			t.Fatal(err)
		}
	}
	arrived := func() (all [][]byte) {
		t.Helper()
		buf := make([]byte, 2048)
		for {
			inbox.SetReadDeadline(time.Now().Add(lab.Patience(500 * time.Millisecond)))
			n, err := inbox.Read(buf)
			if err != nil {
				return all
			}
			all = append(all, bytes.Clone(buf[:n]))
		}
	}

	// On the wire: WireGuard's messages, and nothing of what is in them.
	wire := startCapture(t, h2.Node, l.Dir(), "eth0", "udp port 51820")
	send(a.Node, secret)
	if got := arrived(); len(got) != 1 || !bytes.Equal(got[0], secret) {
		t.Fatalf("%d datagrams", len(got))
	}
	var data [][]byte // UDP payloads of type 4, transport data
	for _, frame := range must(wire.packets())(t) {
		payload := frame[14+20+8:]
		if bytes.Contains(frame, secret[:16]) {
			t.Errorf("in the clear: %q", frame)
		}
		if payload[0] < 1 || payload[0] > 4 || payload[1]|payload[2]|payload[3] != 0 {
			t.Errorf("not WireGuard's: % x", payload[:8])
		}
		if payload[0] == 4 && len(payload) > len(secret) {
			data = append(data, payload)
		}
	}
	if len(data) == 0 {
		t.Fatal("the datagram was not captured")
	}

	// From h4, with all that can be known: a packet as it is, what was captured, damaged and again, and handshakes of a key
	// that no lease has.
	inner := innerUDP(t, netip.AddrPortFrom(a.Addr, 9), at, secret)
	h4 := l.Host(4)
	raw := listenUDP(t, h4.Node, netip.AddrPortFrom(h4.Addr, wireguardPort))
	to := netip.AddrPortFrom(h2.Addr, wireguardPort)
	damaged := bytes.Clone(data[0])
	damaged[len(damaged)-1] ^= 1
	for _, datagram := range [][]byte{inner, data[0], damaged, append([]byte{4, 0, 0, 0}, inner...)} {
		for range 10 {
			if _, err := raw.WriteToUDPAddrPort(datagram, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw.Close()
	stranger := startForeign(t, h4, foreignKernel, unleased(t, m1, m2), []*lab.Muslin{m1, m2})
	for range 5 {
		send(stranger.pod.Node, secret)
		time.Sleep(100 * time.Millisecond)
	}
	// From h3, which has a key: in its own name, and in another's.
	runIn(t, f.Host.Node, "ip", "addr", "add", a.Addr.String()+"/32", "dev", "lo")
	spoof := listenUDP(t, f.Host.Node, netip.AddrPortFrom(a.Addr, 0))
	for range 10 {
		if _, err := spoof.WriteToUDPAddrPort(secret, at); err != nil {
			t.Fatal(err)
		}
	}
	if got := arrived(); len(got) != 0 {
		t.Errorf("%d datagrams came in", len(got))
	}
	send(f.pod.Node, secret)
	if got := arrived(); len(got) != 1 {
		t.Errorf("%d datagrams of the node with a lease", len(got))
	}
	if out := must(stranger.WG(t.Context(), "show", stranger.Device, "latest-handshakes"))(t); strings.Count(out, "\t0\n") != 2 {
		t.Errorf("handshakes of the stranger: %s", out)
	}
	if n := len(status(t, m2).Peers); n != 2 {
		t.Errorf("%d peers", n)
	}
}

// innerUDP is a packet as pods send it.
func innerUDP(t *testing.T, from, to netip.AddrPort, payload []byte) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
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

// With a preshared key in the config who has another one, or none, has no session; status says so, and nothing shows the
// key.
func TestWireGuardPresharedKey(t *testing.T) {
	t.Parallel()
	eachWireGuard(t, testWireGuardPresharedKey)
}

func testWireGuardPresharedKey(t *testing.T, flag string, foreignKernel bool) {
	l := newLab(t, 3)
	leaveIll(l, "the third node does not know the second")
	h1, h2 := l.Host(1), l.Host(2)
	psk := func() (text, file string) {
		var k [32]byte
		rand.Read(k[:])
		text = base64.StdEncoding.EncodeToString(k[:])
		f := must(os.CreateTemp(l.Dir(), "psk"))(t)
		fmt.Fprintln(f, text)
		f.Close()
		return text, f.Name()
	}
	right, rightFile := psk()
	_, wrongFile := psk()
	config := fmt.Sprintf(`{"Network":%q,"Backend":{"Type":"wireguard","ListenPort":4500,"MTU":1400,"PSK":%q,"PersistentKeepaliveInterval":1}}`, network, right)
	etcd := startEtcd(t, h1)
	etcd.Config(t, config)
	flags := []string{flag, "--etcd-endpoints", endpoint(h1), "--log-level", "debug"}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	waitPeers(t, m1, 1)
	eventuallyPings(t, a.Node, b.Addr)
	expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 1, Size: 1400 - 80, DontFragment: true})
	if s := status(t, m1); s.Node.Port != 4500 || s.Node.MTU != 1400-80 {
		t.Errorf("%+v", s.Node)
	}

	// wireguard-go takes the port that the lease says, and the daemons listen where theirs say.
	f := startForeign(t, l.Host(3), foreignKernel, unleased(t, m1, m2), nil)
	etcd.Do(t, "put", prefix+leaseKey(f.subnet), f.value())
	waitPeers(t, m1, 2)
	n1 := status(t, m1).Node
	at := netip.AddrPortFrom(h1.Addr, 4500)
	if err := f.AddPeer(t.Context(), n1.PublicKey, n1.Subnet, at, "preshared-key", wrongFile); err != nil {
		t.Fatal(err)
	}
	expectNoAnswer(t, f.pod.Node, a.Addr)
	expectNoAnswer(t, a.Node, f.pod.Addr)
	if p, _ := status(t, m1).Peer(f.subnet); p.LastHandshake != nil {
		t.Errorf("%+v", p)
	}
	eventually(t, lab.Patience(30*time.Second), func() error {
		out, err := m1.Command(t.Context(), "status")
		if err == nil && !strings.Contains(out, "no handshake yet") {
			err = fmt.Errorf("status: %s", out)
		}
		return err
	})
	if err := f.AddPeer(t.Context(), n1.PublicKey, n1.Subnet, at, "preshared-key", rightFile); err != nil {
		t.Fatal(err)
	}
	eventuallyPings(t, f.pod.Node, a.Addr)
	eventuallyPings(t, a.Node, f.pod.Addr)

	// The key stays hidden, also where the config is spoken of.
	etcd.Do(t, "del", prefix+"/config")
	eventually(t, 10*time.Second, func() error {
		if w := strings.Join(status(t, m1).Warnings, "\n"); !strings.Contains(w, "was deleted from the store") {
			return fmt.Errorf("warnings: %s", w)
		}
		return nil
	})
	other, _ := psk()
	etcd.Config(t, strings.Replace(config, right, other, 1))
	eventually(t, 10*time.Second, func() error {
		if w := strings.Join(status(t, m1).Warnings, "\n"); !strings.Contains(w, "Backend.PSK: another one") {
			return fmt.Errorf("warnings: %s", w)
		}
		return nil
	})
	for _, secret := range []string{right, other} {
		for what, text := range map[string]string{"log": m1.Output(), "status": must(m1.Command(t.Context(), "status", "--output", "json"))(t)} {
			if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprintf("%x", must(base64.StdEncoding.DecodeString(secret))(t))) {
				t.Errorf("the preshared key stands in the %s:\n%s", what, text)
			}
		}
	}
}

// A daemon is replaced. The engine's sessions stay behind, so that what is on the way in that moment may be lost, and no
// more; the kernel's device does not notice.
func TestWireGuardReplace(t *testing.T) {
	t.Parallel()
	eachWireGuard(t, testWireGuardReplace)
}

func testWireGuardReplace(t *testing.T, flag string, _ bool) {
	l := newLab(t, 2)
	daemons := join(t, l, "wireguard", flag)
	a, b := daemons[0].Host.Pods()[0], daemons[1].Host.Pods()[0]
	eventuallyPings(t, a.Node, b.Addr)
	there, back := labtest.StartProbe(t, a, b), labtest.StartProbe(t, b, a)
	old := daemons[1]
	for i := range 3 {
		m := launchMuslin(t, l.Host(2), flag, "--replace", "--etcd-endpoints", endpoint(l.Host(1)))
		expectExit(t, old.Proc, 0)
		waitPeers(t, m, 1)
		labtest.WaitReceived(t, there, 1000*(i+1))
		old = m
	}
	for i, p := range []interface{ Stop() probes.Result }{there, back} {
		what, r := [...]string{"there", "back"}[i], p.Stop()
		t.Log(what, r)
		if flag == "--wireguard=kernel" && r.Lost != 0 {
			t.Errorf("%s: %s; want none lost", what, r)
		}
		if r.Err != nil || r.Duplicated != 0 || r.LongestGap > lab.Patience(500*time.Millisecond) {
			t.Errorf("%s: %s, %v", what, r, r.Err)
		}
	}
	copyTCP(t, a, b, bigFile())
}

// Without WireGuard in the kernel --wireguard=kernel says so, and the default does without it.
func TestWireGuardOfNoKernel(t *testing.T) {
	t.Parallel()
	if kernelWireGuard(t) {
		t.Skip("this kernel has WireGuard")
	}
	l := newLab(t, 2)
	h := l.Host(1)
	before := snapshot(t, h.Node)
	m := launchMuslin(t, h, "--embedded-etcd", "--network", network, "--backend", "wireguard", "--wireguard=kernel")
	expectWords(t, expectExit(t, m.Proc, 1), "--wireguard=kernel: this kernel has no WireGuard")
	expectAsBefore(t, h.Node, before)
	startMuslin(t, l.Host(2), "--embedded-etcd", "--network", network, "--backend", "wireguard")
}
