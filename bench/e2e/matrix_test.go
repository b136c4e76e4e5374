//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Every backend, between muslin nodes and with a node whose kernel is set up as flannel sets it up. Each pair of pods
// exchanges pings of every size, files both ways, and what is on the wire is what `muslin route` says.
//
//	p1a ── cni0 ─ h1 (muslin, etcd) ─┐         ┌─ h3 (as flannel's node) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ───────┴── br0 ──┘
func TestMatrix(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "tcpdump", "etcdctl", "wg", "wireguard-go", "nsenter", "unshare")
	m := &matrix{cells: make(map[string]map[string]string)}
	t.Cleanup(func() { m.write(t) })
	hasWireGuard := kernelWireGuard(t)
	const both = "vxlan, IPv4 and IPv6"
	t.Run(strings.ReplaceAll(both, ", ", "_"), func(t *testing.T) {
		t.Parallel()
		testDualStack(t, m, both)
	})
	const alone = "vxlan, IPv6 alone"
	t.Run(strings.ReplaceAll(alone, ", ", "_"), func(t *testing.T) {
		t.Parallel()
		testSixAlone(t, m, alone)
	})
	for _, row := range wireguard6Rows(hasWireGuard) {
		t.Run(strings.ReplaceAll(row.name, ", ", "_"), func(t *testing.T) {
			t.Parallel()
			row.run(t, m)
		})
	}
	for _, row := range matrixRows6 {
		t.Run(strings.ReplaceAll(row.name, ", ", "_")+"_IPv6", func(t *testing.T) {
			t.Parallel()
			row.run(t, m)
		})
	}
	for _, row := range []matrixRow{
		{name: "vxlan", backend: "vxlan", way: "encapsulated", overhead: 50, with: "kernel VXLAN", join: joinVXLAN},
		{name: "vxlan with DirectRouting", backend: directBackend, way: "direct", pods: 1500 - 50, with: "kernel VXLAN and routes", join: joinDirect},
		{name: "udp", backend: "udp", way: "encapsulated", overhead: 28},
		{name: "host-gw", backend: "host-gw", way: "direct", with: "routes", join: joinRoutes},
		{name: "wireguard, in the daemon", backend: "wireguard", way: "encrypted", overhead: 80, flags: []string{"--wireguard=userspace"}, with: "WireGuard", join: joinWireGuard(hasWireGuard)},
		{name: "wireguard, the kernel's", backend: "wireguard", way: "encrypted", overhead: 80, flags: []string{"--wireguard=kernel"}, with: "WireGuard", join: joinWireGuard(hasWireGuard), needsWireGuard: true},
	} {
		t.Run(strings.ReplaceAll(row.name, ", ", "_"), func(t *testing.T) {
			t.Parallel()
			if row.needsWireGuard && !hasWireGuard {
				m.put(row.name, "muslin ↔ muslin", "this kernel has no WireGuard")
				t.Skip("this kernel has no WireGuard")
			}
			row.run(t, m)
		})
	}
}

// matrixRow is one backend.
type matrixRow struct {
	name     string
	backend  string // --backend's value
	flags    []string
	way      string // `muslin route`'s
	overhead int    // bytes
	pods     int    // the pods' MTU, where it is less than what the way takes, as in a network that has encapsulation too

	// A node that is not muslin's; nil: there is none to be had without flannel's program.
	with string
	join func(*testing.T, *lab.Lab, netip.Prefix, []*lab.Muslin) *lab.Pod

	needsWireGuard bool
}

func (row *matrixRow) run(t *testing.T, m *matrix) {
	l := newLab(t, 3)
	withRouter(t, l)
	h1, h2 := l.Host(1), l.Host(2)
	m1 := startMuslin(t, h1, append(row.flags, "--embedded-etcd", "--network", network, "--backend", row.backend)...)
	m2 := startMuslin(t, h2, append(row.flags, "--etcd-endpoints", endpoint(h1))...)
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	row.check(t, m1, a, b, h2)
	m.note(row.name, "muslin ↔ muslin", !t.Failed())
	if row.join == nil {
		return
	}
	c := row.join(t, l, unleased(t, m1, m2), []*lab.Muslin{m1, m2})
	waitPeers(t, m1, 2)
	row.check(t, m1, a, c, l.Host(3))
	m.note(row.name, "muslin ↔ "+row.with, !t.Failed())
}

// check wants packets of every size between two pods, and them to go as the daemon of the first says.
func (row *matrixRow) check(t *testing.T, m *lab.Muslin, from, to *lab.Pod, far *lab.Host) {
	t.Helper()
	mtu := 1500 - row.overhead
	eventuallyPings(t, from.Node, to.Addr)
	eventuallyPings(t, to.Node, from.Addr)
	for _, way := range [][2]*lab.Pod{{from, to}, {to, from}} {
		for _, size := range []int{28, 576, cmp.Or(row.pods, mtu)} {
			expectPings(t, way[0].Node, way[1].Addr, lab.PingOptions{Count: 2, Size: size, DontFragment: true})
		}
		copyTCP(t, way[0], way[1], bigFile()/4)
	}
	said := route(t, m, to.Addr.String())
	if said.Way != row.way || said.MTU != mtu || len(said.Notes) != 0 {
		t.Errorf("route: %+v; want %s with MTU %d", said, row.way, mtu)
	}
	row.checkPing(t, m, to, far)
	row.checkTrace(t, m, from, to, far)
	row.checkWire(t, m.Host, from, to, far, said)
}

// checkTrace follows a packet from the one pod to the other, and back, on the nodes that tell.
func (row *matrixRow) checkTrace(t *testing.T, m *lab.Muslin, from, to *lab.Pod, far *lab.Host) {
	t.Helper()
	there := func(r *traced, err error) bool { return err == nil && r.Answer != "" }
	r, err := muslinTraceUntil(t, m, there, from.Addr.String(), to.Addr.String())
	if err != nil || r.Stopped != "" || r.Answer != "echo reply" || r.Way != row.way || r.SentBy != "pod" {
		t.Errorf("trace %s to %s: %+v, %v", from.Addr, to.Addr, r, err)
	}
	tells := far.Number == 2 && row.name != "host-gw"
	checks := row.way != "direct" && !slices.Contains(row.flags, "--wireguard=kernel") // the daemon there lets it in; else the kernel
	if strings.Contains(r.stages(), " receive forward-peer deliver ") != (tells && !checks) ||
		strings.Contains(r.stages(), " receive check forward-peer deliver ") != (tells && checks) {
		t.Errorf("trace %s to %s: %s", from.Addr, to.Addr, r.stages())
	}
	want := map[bool]string{true: "deliver", false: "receive"}[tells]
	stops := func(r *traced, err error) bool { return err != nil && r.Stopped == want }
	if r, err = muslinTraceUntil(t, m, stops, "--timeout", "300ms", from.Addr.String(), to.Addr.Next().Next().Next().String()); !stops(&r, err) {
		t.Errorf("trace to no pod: it stops at %q, want %q: %s (%v)", r.Stopped, want, r.Reason, err)
	}
}

// checkPing pings a pod and its node, and wants both ways to be known where both ends run muslin.
func (row *matrixRow) checkPing(t *testing.T, m *lab.Muslin, to *lab.Pod, far *lab.Host) {
	t.Helper()
	for _, what := range []string{to.Addr.String(), far.Addr.String()} {
		r, err := muslinPing(t, m, what, "--count", "2")
		if err != nil || r.Received != 2 || r.There.Way != row.way || r.Holder != "peer" {
			t.Errorf("ping %s: %+v, %v", what, r, err)
		}
		if known := far.Number == 2 && row.name != "host-gw"; r.Back.Known != known || known && r.Back.Way != row.way {
			t.Errorf("ping %s: back %+v", what, r.Back)
		}
	}
}

// checkWire captures what leaves the host while the one pod sends datagrams to the other.
func (row *matrixRow) checkWire(t *testing.T, h *lab.Host, from, to *lab.Pod, far *lab.Host, said routeAnswer) {
	t.Helper()
	const n = 5
	secret := bytes.Repeat([]byte("matrix"), 20)
	wire := startCapture(t, h.Node, t.TempDir(), "eth0", "udp and (src host "+hostAddr6(h).String()+" or src host "+h.Addr.String()+" or dst host "+to.Addr.String()+")")
	inbox := listenUDP(t, to.Node, netip.AddrPortFrom(to.Addr, 0))
	outbox := listenUDP(t, from.Node, netip.AddrPortFrom(from.Addr, 0))
	at := netip.MustParseAddrPort(inbox.LocalAddr().String())
	buf := make([]byte, 2000)
	for range n {
		if _, err := outbox.WriteToUDPAddrPort(secret, at); err != nil {
			t.Fatal(err)
		}
		inbox.SetReadDeadline(time.Now().Add(lab.Patience(5 * time.Second)))
		if got, err := inbox.Read(buf); err != nil || !bytes.Equal(buf[:got], secret) {
			t.Fatalf("%d bytes arrived, %v", got, err)
		}
	}
	var frames [][]byte
	direct, outer, clear := 0, 0, 0
	eventually(t, lab.Patience(5*time.Second), func() (err error) {
		if frames, err = wire.packets(); err != nil {
			return err
		}
		direct, outer, clear = 0, 0, 0
		for _, frame := range frames {
			p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
			udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if p.NetworkLayer() == nil || udp == nil {
				continue
			}
			dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
			switch {
			case dst == to.Addr && bytes.Equal(udp.Payload, secret):
				direct++
			case netip.AddrPortFrom(dst, uint16(udp.DstPort)).String() == said.NextHop && len(udp.Payload) > len(secret):
				outer++
			}
			if bytes.Contains(frame, secret) {
				clear++
			}
		}
		if direct+outer < n {
			err = fmt.Errorf("%d direct and %d encapsulated datagrams in %d frames", direct, outer, len(frames))
		}
		return err
	})
	want := map[string][3]int{"direct": {n, 0, n}, "encapsulated": {0, n, n}, "encrypted": {0, n, 0}}[said.Way]
	if got := [3]int{direct, outer, clear}; got != want {
		t.Errorf("%s: of %d datagrams to %s %d went directly, %d in datagrams to %s, %d in the clear", said.Way, n, far.Name, got[0], got[1], said.NextHop, got[2])
	}
}

// putLease writes a lease of a node without a daemon.
func putLease(t *testing.T, l *lab.Lab, subnet netip.Prefix, value string) {
	t.Helper()
	labtest.EtcdOn(l.Host(1)).Do(t, "put", prefix+leaseKey(subnet), value)
}

func joinVXLAN(t *testing.T, l *lab.Lab, subnet netip.Prefix, daemons []*lab.Muslin) *lab.Pod {
	v := must(l.Host(3).SetupKernelVXLAN(t.Context(), 1, 8472, subnet))(t)
	for _, m := range daemons {
		n := status(t, m).Node
		if err := v.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	putLease(t, l, subnet, v.LeaseValue(1))
	return must(l.Host(3).AddPod(t.Context(), "a", v.PodNetwork()))(t)
}

func joinDirect(t *testing.T, l *lab.Lab, subnet netip.Prefix, daemons []*lab.Muslin) *lab.Pod {
	v := must(l.Host(3).SetupKernelVXLAN(t.Context(), 1, 8472, subnet))(t)
	for _, m := range daemons {
		n := status(t, m).Node
		if err := v.AddDirectPeer(t.Context(), n.Subnet, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	putLease(t, l, subnet, v.LeaseValue(1))
	// The pods of a network with DirectRouting have the MTU of the kernel's device.
	return must(l.Host(3).AddPod(t.Context(), "a", v.PodNetwork()))(t)
}

func joinRoutes(t *testing.T, l *lab.Lab, subnet netip.Prefix, daemons []*lab.Muslin) *lab.Pod {
	h := l.Host(3)
	for _, m := range daemons {
		n := status(t, m).Node
		runIn(t, h.Node, "ip", "route", "add", n.Subnet.String(), "via", n.PublicIP.String())
	}
	if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	putLease(t, l, subnet, fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"host-gw"}`, h.Addr))
	return must(h.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: netip.PrefixFrom(subnet.Addr().Next(), 24), MTU: 1500}))(t)
}

func joinWireGuard(kernel bool) func(*testing.T, *lab.Lab, netip.Prefix, []*lab.Muslin) *lab.Pod {
	return func(t *testing.T, l *lab.Lab, subnet netip.Prefix, daemons []*lab.Muslin) *lab.Pod {
		f := startForeign(t, l.Host(3), kernel, subnet, daemons)
		putLease(t, l, subnet, f.value())
		return f.pod
	}
}

// matrix is what came of it, by row and column.
type matrix struct {
	mu    sync.Mutex
	cells map[string]map[string]string
}

func (m *matrix) note(row, column string, passed bool) {
	m.put(row, column, map[bool]string{true: "✓", false: "**failed**"}[passed])
}

func (m *matrix) put(row, column, cell string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cells[row] == nil {
		m.cells[row] = make(map[string]string)
	}
	m.cells[row][column] = cell
}

// write shows the table, and puts it into the file that MUSLIN_MATRIX names, if it names one.
func (m *matrix) write(t *testing.T) {
	var b strings.Builder
	release := must(os.ReadFile("/proc/sys/kernel/osrelease"))(t)
	fmt.Fprintf(&b, "Linux %s, %s.\n\n| Backend | Between | |\n|---|---|---|\n", strings.TrimSpace(string(release)), time.Now().UTC().Format(time.DateOnly))
	for _, row := range slices.Sorted(maps.Keys(m.cells)) {
		for _, column := range slices.Sorted(maps.Keys(m.cells[row])) {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", row, column, m.cells[row][column])
		}
	}
	t.Log("\n" + b.String())
	if path := os.Getenv("MUSLIN_MATRIX"); path != "" {
		if err := os.WriteFile(path, []byte(matrixPage+b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// matrixPage is docs/matrix.md above the table.
const matrixPage = `# What works with what

Each row is one run of ` + "`TestMatrix`" + ` in ` + "`bench/e2e`" + `, which wrote this page (` + "`make matrix`" + `): pings of 28 and 576 bytes and of the
full MTU, unfragmented, and files, both ways between two pods. A capture at the sender's interface shows that packets go
the way that ` + "`muslin route`" + ` says: directly, in datagrams to the address that it names, or encrypted, with nothing of them
in the clear.

"muslin" is a node with a daemon. The other is a node whose kernel is set up as flannel sets it up, by hand: its VXLAN
device with neighbours and forwarding entries, its routes, or its WireGuard (where the kernel has none, the program
wireguard-go). flannel's udp backend has no such node, as it is a program; ` + "`make bench`" + ` measures beside it. It has IPv4 only:
udp with IPv6 is between muslin nodes.

`
