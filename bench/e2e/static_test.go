//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

// An overlay whose nodes know each other from a file, without a store: quick to start again with other flags.

// leased is a node's entry in the file.
type leased struct {
	subnet netip.Prefix
	public netip.Addr
	mac    string
}

// leaseOf is what host number n holds: 10.244.(10+n).0/24.
func leaseOf(h *lab.Host) leased {
	return leased{
		subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(10 + h.Number), 0}), 24),
		public: h.Addr,
		mac:    fmt.Sprintf("0a:00:00:00:00:%02x", h.Number),
	}
}

// startStatic starts a daemon that has these leases, its own among them, from a file.
func startStatic(t *testing.T, h *lab.Host, backend string, leases []leased, flags ...string) *lab.Muslin {
	t.Helper()
	m := launchStatic(t, h, backend, leases, flags...)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func launchStatic(t *testing.T, h *lab.Host, backend string, leases []leased, flags ...string) *lab.Muslin {
	t.Helper()
	values := make(map[string]any)
	for _, l := range leases {
		value := map[string]any{"PublicIP": l.public, "PublicIPv6": nil}
		if backend == "vxlan" {
			value["BackendType"], value["BackendData"] = "vxlan", map[string]any{"VNI": 1, "VtepMAC": l.mac}
		}
		values[strings.ReplaceAll(l.subnet.String(), "/", "-")] = value
	}
	path := filepath.Join(h.Dir, "peers.json")
	if err := os.WriteFile(path, must(json.Marshal(values))(t), 0o644); err != nil {
		t.Fatal(err)
	}
	return launchMuslin(t, h, append([]string{"--peers-file", path, "--network", network, "--backend", backend}, flags...)...)
}

// startBoth starts the daemons of the first two hosts, each with its own flags, and gives each host a pod when
// it has none yet.
func startBoth(t *testing.T, l *lab.Lab, backend string, leases []leased, flags [2][]string) [2]*lab.Muslin {
	t.Helper()
	var all [2]*lab.Muslin
	for i := range all {
		all[i] = launchStatic(t, l.Host(i+1), backend, leases, flags[i]...)
	}
	for _, m := range all {
		if err := m.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(m.Host.Pods()) == 0 {
			addPod(t, m, "a")
		}
	}
	return all
}

// stopAll ends daemons side by side.
func stopAll(t *testing.T, daemons ...*lab.Muslin) {
	t.Helper()
	var stopping sync.WaitGroup
	for _, m := range daemons {
		stopping.Go(func() {
			if err := m.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	stopping.Wait()
}

// kernelPeer sets up the kernel's VXLAN device on a host, with one pod, for muslin's hosts to be its peers.
func kernelPeer(t *testing.T, h *lab.Host, peers ...leased) leased {
	t.Helper()
	lab.RequireTool(t, "bridge")
	own := leaseOf(h)
	v := must(h.SetupKernelVXLAN(t.Context(), 1, 8472, own.subnet))(t)
	for _, p := range peers {
		if err := v.AddPeer(t.Context(), p.subnet, p.mac, p.public); err != nil {
			t.Fatal(err)
		}
	}
	must(h.AddPod(t.Context(), "a", v.PodNetwork()))(t)
	own.mac = v.MAC
	return own
}

// expectCarried wants everything that two pods have to say to each other to arrive unharmed: pings, datagrams
// of odd sizes, and a file each way at the same time.
func expectCarried(t *testing.T, a, b *lab.Pod, fileSize int64) {
	t.Helper()
	expectPing(t, a.Node, b.Addr, 2)
	expectPing(t, b.Node, a.Addr, 2)
	echoUDP(t, a, b)
	echoUDP(t, b, a)
	copyBothWays(t, a, b, fileSize)
}

func copyBothWays(t *testing.T, a, b *lab.Pod, size int64) {
	t.Helper()
	var ways sync.WaitGroup
	ways.Go(func() { copyTCP(t, a, b, size) })
	ways.Go(func() { copyTCP(t, b, a, size) })
	ways.Wait()
}

// echoSizes of UDP payloads: an empty one, odd ones, the longest that a VXLAN's MTU of 1450 and a UDP overlay's
// of 1472 take and what lies beside them, and such as go in several fragments.
var echoSizes = []int{0, 1, 17, 18, 19, 511, 1421, 1422, 1423, 1443, 1444, 1445, 4001, 9001}

// A run of datagrams that the sender hands to its kernel in one piece, as QUIC does.
const (
	runSize, runLast = 1001, 333 // bytes of each datagram, and of the last
	runCount         = 22
)

// echoUDP sends datagrams from one pod to another, which sends them back.
func echoUDP(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	at := netip.AddrPortFrom(to.Addr, 7200)
	mirror, conn := listenUDP(t, to.Node, at), listenUDP(t, from.Node, netip.AddrPortFrom(from.Addr, 0))
	var reflecting sync.WaitGroup
	reflecting.Go(func() { // until mirror is closed
		buf := make([]byte, 1<<16)
		for {
			n, sender, err := mirror.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if _, err := mirror.WriteToUDPAddrPort(buf[:n], sender); err != nil {
				t.Errorf("send a datagram of %d bytes back: %v", n, err)
			}
		}
	})
	defer reflecting.Wait()
	defer mirror.Close()
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(lab.Patience(10 * time.Second))); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{2})
	buf := make([]byte, 1<<16)
	for _, size := range echoSizes {
		sent := make([]byte, size)
		random.Read(sent)
		if _, err := conn.WriteToUDPAddrPort(sent, at); err != nil {
			t.Errorf("datagram of %d bytes from %s: %v", size, from.Name, err)
			return
		}
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], sent) {
			t.Errorf("echo of %d bytes from %s by %s: %d bytes, the same: %v, %v", size, from.Name, to.Name, n, bytes.Equal(buf[:n], sent), err)
			return
		}
	}
	if err := echoRun(conn, at, random); err != nil {
		t.Errorf("run of datagrams from %s to %s: %v", from.Name, to.Name, err)
	}
}

// sendRun sends a run of datagrams in one piece. Before Linux 6.11 (10154dbded6d) the kernel wants checksum offload on
// the way out for that, and says EIO: then they go one by one, as QUIC does it.
func sendRun(conn *net.UDPConn, at netip.AddrPort, run []byte) error {
	control := make([]byte, unix.CmsgSpace(2))
	header := unix.Cmsghdr{Level: unix.SOL_UDP, Type: unix.UDP_SEGMENT}
	header.SetLen(unix.CmsgLen(2))
	if _, err := binary.Encode(control, binary.NativeEndian, header); err != nil {
		return err
	}
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], runSize)
	_, _, err := conn.WriteMsgUDPAddrPort(run, control, at)
	if !errors.Is(err, unix.EIO) {
		return err
	}
	for datagram := range slices.Chunk(run, runSize) {
		if _, err := conn.WriteToUDPAddrPort(datagram, at); err != nil {
			return err
		}
	}
	return nil
}

// echoRun sends a run of datagrams by UDP_SEGMENT (since Linux 4.18), each with its number in front, and wants
// all of them back.
func echoRun(conn *net.UDPConn, at netip.AddrPort, random *rand.ChaCha8) error {
	run := make([]byte, (runCount-1)*runSize+runLast)
	random.Read(run)
	for i := range runCount {
		run[i*runSize] = byte(i)
	}
	if err := sendRun(conn, at, run); err != nil {
		return err
	}
	seen := make(map[byte]bool)
	buf := make([]byte, 1<<16)
	for range runCount {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("after %d of %d: %w", len(seen), runCount, err)
		}
		i := int(buf[0])
		if i >= runCount || seen[buf[0]] || !bytes.Equal(buf[:n], run[i*runSize:min((i+1)*runSize, len(run))]) {
			return fmt.Errorf("datagram %d of %d bytes came back changed or twice", i, n)
		}
		seen[buf[0]] = true
	}
	return nil
}
