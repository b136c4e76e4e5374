//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// muslinCapture is a `muslin capture` that runs.
type muslinCapture struct {
	*lab.Proc
	file string // of -w; empty: none
}

// captureWith starts one, and waits until it captures. file is a name for -w; empty: lines of text on stdout.
func captureWith(t *testing.T, m *lab.Muslin, file string, args ...string) *muslinCapture {
	t.Helper()
	c := new(muslinCapture)
	all := append([]string{labtest.Bin, "capture", "--control", m.Control}, args...)
	if file != "" {
		c.file = filepath.Join(t.TempDir(), file)
		all = append(all, "-w", c.file)
	}
	c.Proc = must(m.Host.Start(fmt.Sprintf("capture-%d", time.Now().UnixNano()), nil, all...))(t)
	if err := c.WaitOutput(t.Context(), "Ctrl-C ends it"); err != nil {
		t.Fatal(err)
	}
	return c
}

// interrupt is Ctrl-C. It returns what the command has said.
func (c *muslinCapture) interrupt(t *testing.T) string {
	t.Helper()
	if err := c.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	return labtest.ExpectExit(t, c.Proc, 0)
}

// read has tshark, which knows nothing of muslin, read the file: a line of fields for each packet.
func (c *muslinCapture) read(t *testing.T, filter string, fields ...string) [][]string {
	t.Helper()
	return tshark(t, c.file, filter, fields...)
}

func tshark(t *testing.T, file, filter string, fields ...string) (all [][]string) {
	t.Helper()
	lab.RequireTool(t, "tshark")
	// 8472 is no port of VXLAN's to everybody. IP and UDP checksums are looked at.
	args := []string{"tshark", "-r", file, "-n", "-d", "udp.port==8472,vxlan", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-Y", filter, "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil || strings.Contains(complaints.String(), "cut short") {
		t.Errorf("tshark %s: %v: %s", file, err, complaints.String())
	}
	for line := range strings.Lines(string(out)) {
		all = append(all, strings.Split(strings.TrimSuffix(line, "\n"), "|"))
	}
	return all
}

// lines are what tcpdump makes of the file: where there is no tshark, as in a guest of bench/vm.
func (c *muslinCapture) lines(t *testing.T, filter string) []string {
	t.Helper()
	lab.RequireTool(t, "tcpdump")
	cmd := exec.CommandContext(t.Context(), "tcpdump", "-Z", "root", "-n", "-r", c.file, filter)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("tcpdump of %s: %v: %s", c.file, err, complaints.String())
	}
	return strings.FieldsFunc(string(out), func(c rune) bool { return c == '\n' })
}

// flowLine is a line of `muslin capture --flows`, declared a second time on purpose.
type flowLine struct {
	Start        time.Time         `json:"start"`
	End          time.Time         `json:"end"`
	Why          string            `json:"why"`
	Direction    string            `json:"direction"`
	Protocol     string            `json:"protocol"`
	Src          netip.Addr        `json:"src"`
	SrcPort      uint16            `json:"src_port"`
	Dst          netip.Addr        `json:"dst"`
	DstPort      uint16            `json:"dst_port"`
	Peer         string            `json:"peer"`
	Packets      uint64            `json:"packets"`
	Bytes        uint64            `json:"bytes"`
	ReplyPackets uint64            `json:"reply_packets"`
	ReplyBytes   uint64            `json:"reply_bytes"`
	Flags        string            `json:"tcp_flags"`
	ReplyFlags   string            `json:"reply_tcp_flags"`
	Drops        map[string]uint64 `json:"drops"`
}

func readFlows(t *testing.T, file string) (all []flowLine) {
	t.Helper()
	f := must(os.Open(file))(t)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l flowLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%v in %s", err, lines.Text())
		}
		all = append(all, l)
	}
	return all
}

// What `muslin capture` writes is what was on the way, by the word of tshark:
//
//	p1a ── cni0 ─ h1 (muslin, capture) ── br0 ─┬─ h2 (muslin) ─ cni0 ── p2a
//	                                           └─ h3 (muslin) ─ cni0 ── p3a
func TestCaptureCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	daemons := join(t, l, "vxlan")
	m, h1, h2 := daemons[0], l.Host(1), l.Host(2)
	a, b, c := h1.Pods()[0], h2.Pods()[0], l.Host(3).Pods()[0]
	own := status(t, m).Node
	ofPod := "host " + a.Addr.String() // beside which daemons ask each other whether they are alive

	t.Run("inner", func(t *testing.T) {
		all := captureWith(t, m, "inner")
		filtered := captureWith(t, m, "filtered", "icmp[icmptype]", "=", "icmp-echo", "and", ofPod)
		ofPeer := captureWith(t, m, "peer", "--peer", h2.Addr.String(), "icmp and "+ofPod)
		counted := captureWith(t, m, "", "--count", "2", "host "+b.Addr.String())
		expectPing(t, a.Node, b.Addr, 3)
		expectPing(t, a.Node, c.Addr, 2)
		copyTCP(t, a, b, 1<<20)
		text := labtest.ExpectExit(t, counted.Proc, 0)
		expectWords(t, text, "icmp echo request", a.Addr.String()+" > "+b.Addr.String(), "[peer "+h2.Addr.String()+"]", "2 packets captured, 0 lost")
		expectWords(t, all.interrupt(t), "0 lost")
		expectWords(t, filtered.interrupt(t), "5 packets captured, 0 lost")
		expectWords(t, ofPeer.interrupt(t), "6 packets captured, 0 lost")

		icmp := all.read(t, "icmp && ip.addr == "+a.Addr.String(), "ip.src", "ip.dst", "icmp.type", "ip.checksum.status", "icmp.checksum.status", "frame.interface_name", "frame.packet_flags_direction")
		if len(icmp) != 10 {
			t.Errorf("%d ICMP packets, want 10: %v", len(icmp), icmp)
		}
		// On a busy machine a request leaves before the reply to the one before is there.
		slices.SortStableFunc(icmp, func(p, q []string) int { return strings.Compare(q[2], p[2]) })
		for i, p := range icmp {
			want := []string{a.Addr.String(), b.Addr.String(), "8", "1", "1", "inner", "0x00000002"}
			if i >= 5 {
				want[0], want[1], want[2], want[6] = want[1], want[0], "0", "0x00000001"
			}
			if i%5 >= 3 {
				want = strings.Split(strings.ReplaceAll(strings.Join(want, " "), b.Addr.String(), c.Addr.String()), " ")
			}
			if strings.Join(p, " ") != strings.Join(want, " ") {
				t.Errorf("packet %d: %v, want %v", i, p, want)
			}
		}
		// All of the stream is there: the bytes of both segments and superpackets.
		bytes := 0
		super := 0
		for _, p := range all.read(t, "tcp.len > 0 && ip.src == "+a.Addr.String(), "tcp.len", "frame.comment") {
			var n int
			_, _ = fmt.Sscan(p[0], &n)
			bytes += n
			if strings.Contains(p[1], "superpacket") {
				super++
			}
		}
		if bytes < 1<<20 || bytes > 1<<20+1<<19 || super == 0 {
			t.Errorf("%d bytes of TCP of 1 MiB are there, %d superpackets", bytes, super)
		}
		if got := ofPeer.read(t, "ip.addr == "+c.Addr.String(), "ip.src"); len(got) != 0 {
			t.Errorf("another peer's packets: %v", got)
		}
	})

	t.Run("outer", func(t *testing.T) {
		all := captureWith(t, m, "outer", "--point", "outer", "vxlan "+fmt.Sprint(own.VNI)+" and icmp and host "+a.Addr.String())
		expectPing(t, a.Node, b.Addr, 3)
		all.interrupt(t)
		got := all.read(t, "vxlan && icmp && ip.addr == "+a.Addr.String(), "vxlan.vni", "ip.src", "udp.dstport", "udp.checksum.status", "ip.checksum.status", "eth.dst", "icmp.checksum.status")
		if len(got) != 6 {
			t.Errorf("%d datagrams, want 6: %v", len(got), got)
		}
		requests := h1.Addr.String() + "," + a.Addr.String()
		slices.SortStableFunc(got, func(p, q []string) int { // see above
			return strings.Compare(fmt.Sprint(p[1] != requests), fmt.Sprint(q[1] != requests))
		})
		for i, p := range got {
			src, dst, mac, udp := requests, "8472", "", "1"
			if i >= 3 {
				src, mac, udp = h2.Addr.String()+","+b.Addr.String(), own.VtepMAC, "3" // whether it had a checksum is not known
			}
			if len(p) != 7 || p[0] != fmt.Sprint(own.VNI) || p[1] != src || p[2] != dst || p[3] != udp || p[4] != "1,1" || mac != "" && p[5] != mac || p[6] != "1" {
				t.Errorf("datagram %d: %v", i, p)
			}
		}
	})

	t.Run("drops", func(t *testing.T) {
		all := captureWith(t, m, "drops", "--point", "drops", "not ip6 and not net 224.0.0.0/4")
		text := captureWith(t, m, "", "--point", "drops", "--count", "1", "udp port 7300")
		nowhere := netip.MustParseAddr("10.244.254.7")
		send(t, a.Node, nowhere, 2, 100, false)
		x := &dropLab{host: h1, m: m, a: a, b: b}
		beyondMTU(t, x)
		// A datagram of another network, of a peer.
		conn := listenUDP(t, h2.Node, netip.AddrPortFrom(h2.Addr, 0))
		defer conn.Close()
		if _, err := conn.WriteToUDPAddrPort(append([]byte{8, 0, 0, 0, 0, 0, 99, 0}, make([]byte, 60)...), netip.AddrPortFrom(h1.Addr, 8472)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, func() error {
			if status(t, m).Drops["vxlan-vni"] == 0 {
				return fmt.Errorf("no drop yet")
			}
			return nil
		})
		expectWords(t, labtest.ExpectExit(t, text.Proc, 0), "DROPPED no-route", nowhere.String()+".7300")
		all.interrupt(t)
		if got := all.read(t, "ip.dst == "+nowhere.String(), "frame.comment"); len(got) != 2 || !strings.HasPrefix(got[0][0], "dropped: no-route: no lease holds") {
			t.Errorf("no-route: %v", got)
		}
		if got := all.read(t, `frame.comment contains "too-big"`, "ip.len"); len(got) == 0 {
			t.Error("no drop as too-big")
		}
		if got := all.read(t, `frame.comment contains "vxlan-vni"`, "ip.src", "vxlan.vni", "frame.interface_name"); len(got) != 1 || got[0][0] != h2.Addr.String() || got[0][1] != "99" || got[0][2] != "drops" {
			t.Errorf("vxlan-vni: %v", got)
		}
	})

	t.Run("to a pipe", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "piped")
		p := must(m.Host.Start("pipe", nil, "sh", "-c", `"$0" capture --control "$1" --count 4 --snaplen 40 -w - icmp | cat > "$2"`, labtest.Bin, m.Control, file))(t)
		if err := p.WaitOutput(t.Context(), "Ctrl-C ends it"); err != nil {
			t.Fatal(err)
		}
		expectPing(t, a.Node, b.Addr, 3)
		labtest.ExpectExit(t, p, 0)
		if got := tshark(t, file, "icmp", "frame.cap_len", "frame.len"); len(got) != 4 || got[0][0] != "40" || got[0][1] == "40" {
			t.Errorf("through a pipe: %v", got)
		}
	})

	t.Run("ring", func(t *testing.T) {
		ring := captureWith(t, m, "ring", "--ring-files", "3", "--ring-size", "1", "--snaplen", "1500")
		for range 3 {
			copyTCP(t, a, b, 20<<20)
		}
		ring.interrupt(t)
		total := 0
		for i := range 3 {
			name := fmt.Sprintf("%s%d", ring.file, i)
			info := must(os.Stat(name))(t)
			if info.Size() > 1e6+1500 {
				t.Errorf("%s has %d bytes", name, info.Size())
			}
			total += len(tshark(t, name, "tcp", "tcp.srcport", "tcp.dstport"))
		}
		if total < 100 {
			t.Errorf("%d packets in the ring", total)
		}
		if _, err := os.Stat(ring.file + "3"); err == nil {
			t.Error("a fourth file")
		}
	})

	// In a mount namespace of its own: a file system that soon is full.
	t.Run("full disk", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "full")
		p := must(m.Host.Start("full", nil, "sh", "-c", `mount -t tmpfs -o size=200k none /mnt && "$0" capture --control "$1" -w /mnt/full icmp; status=$?; cp /mnt/full "$2" && exit $status`, labtest.Bin, m.Control, file))(t)
		if err := p.WaitOutput(t.Context(), "Ctrl-C ends it"); err != nil {
			t.Fatal(err)
		}
		for range 12 {
			expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 10, Size: 1400})
		}
		expectWords(t, labtest.ExpectExit(t, p, 1), "no space left on device", "what is in the file is whole", "--ring-size")
		if got := tshark(t, file, "icmp", "ip.len"); len(got) < 90 || got[len(got)-1][0] != "1400" {
			t.Errorf("%d packets, %v", len(got), got)
		}
	})

	t.Run("slow reader", func(t *testing.T) {
		before := status(t, m).Drops
		slow := captureWith(t, m, "slow")
		if err := slow.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		copyTCP(t, a, b, 100<<20) // which fails where a packet is lost for long
		if err := slow.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if after := status(t, m).Drops; fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("drops %v, before %v", after, before)
		}
		if text := slow.interrupt(t); strings.Contains(text, " 0 lost") || !strings.Contains(text, "the packets themselves went on") {
			t.Errorf("it says %s", text)
		}
		if got := slow.read(t, "tcp", "tcp.srcport", "tcp.dstport"); len(got) < 100 {
			t.Errorf("%d packets in a file that is not all there", len(got))
		}
	})

	t.Run("flows", func(t *testing.T) {
		flows := captureWith(t, m, "flows", "--flows", "--flow-interval", "1s", "--peer", b.Addr.String())
		expectPing(t, a.Node, b.Addr, 3)
		expectPing(t, a.Node, c.Addr, 1)
		copyTCP(t, a, b, 1<<20)
		time.Sleep(lab.Patience(300 * time.Millisecond)) // the receiver's own FIN is under way
		expectWords(t, flows.interrupt(t), "lines of flows captured")
		var tcp, icmp []flowLine
		for _, f := range readFlows(t, flows.file) {
			switch {
			case f.Why == "active" || f.Src == own.Subnet.Addr() || f.Dst == own.Subnet.Addr(): // or daemons ask each other
			case f.Protocol == "tcp":
				tcp = append(tcp, f)
			case f.Protocol == "icmp":
				icmp = append(icmp, f)
			}
		}
		if len(tcp) != 1 || len(icmp) == 0 {
			t.Fatalf("flows of TCP: %+v, of ICMP: %+v", tcp, icmp)
		}
		if f := tcp[0]; f.Src != a.Addr || f.Dst != b.Addr || f.DstPort == 0 || f.Peer != h2.Addr.String() || f.Direction != "out" || f.Packets < 1<<20/1400 || f.Bytes < 1<<20 ||
			f.ReplyPackets == 0 || !strings.HasPrefix(f.Flags, "FS") || !strings.HasPrefix(f.ReplyFlags, "FS") || !f.End.After(f.Start) || len(f.Drops) != 0 {
			t.Errorf("the flow of TCP: %+v", f)
		}
		var pings, replies uint64
		for _, f := range icmp {
			pings, replies = pings+f.Packets, replies+f.ReplyPackets
			if f.Dst != b.Addr || f.Src != a.Addr || f.Peer != h2.Addr.String() {
				t.Errorf("a flow of ICMP: %+v", f)
			}
		}
		if pings != 3 || replies != 3 {
			t.Errorf("%d pings and %d replies in flows: %+v", pings, replies, icmp)
		}
	})

	t.Run("the next daemon", func(t *testing.T) {
		all := captureWith(t, daemons[1], "replaced", "icmp and "+ofPod)
		expectPing(t, a.Node, b.Addr, 1)
		launchMuslin(t, h2, "--replace", "--etcd-endpoints", endpoint(h1))
		labtest.ExpectExit(t, daemons[1].Proc, 0)
		if err := all.WaitOutput(t.Context(), "capturing goes on"); err != nil {
			t.Fatal(err)
		}
		expectPing(t, a.Node, b.Addr, 1)
		expectWords(t, all.interrupt(t), "4 packets captured, 0 lost")
	})

	t.Run("refused", func(t *testing.T) {
		for args, words := range map[string]string{
			"tcp and":               "at its end",
			"host example.com":      "not looked up",
			"--peer 192.0.2.99":     "no peer has that",
			"--peer foo":            "PublicIP",
			"--point middle":        "want inner, outer or drops",
			"--snaplen 5":           "want 20 to",
			"--ring-files 3":        "--ring-size",
			"--flows --point outer": "leave --point out",
			"--net other":           "leave --net out",
		} {
			out, err := m.Command(t.Context(), append([]string{"capture"}, strings.Fields(args)...)...)
			if err == nil {
				t.Errorf("%s has status 0", args)
			}
			expectWords(t, out, words)
		}
	})
}

// Where the kernel carries, its devices show the packets.
func TestCaptureOfKernel(t *testing.T) {
	t.Parallel()
	t.Run("host-gw", func(t *testing.T) {
		l := newLab(t, 2)
		m := startMuslin(t, l.Host(1), "--embedded-etcd", "--network", network, "--backend", "host-gw")
		a := addPod(t, m, "a")
		early := captureWith(t, m, "", "--count", "2", "icmp") // before there is a peer
		b := addPod(t, startMuslin(t, l.Host(2), "--etcd-endpoints", endpoint(l.Host(1))), "a")
		waitPeers(t, m, 1)
		eventuallyPings(t, a.Node, b.Addr)
		eventually(t, lab.Patience(10*time.Second), func() error {
			expectPing(t, a.Node, b.Addr, 1)
			if early.Running() {
				return fmt.Errorf("packets of a peer that came later are not captured")
			}
			return nil
		})
		expectWords(t, labtest.ExpectExit(t, early.Proc, 0), "[peer "+l.Host(2).Addr.String()+"]", "2 packets captured")
		inner := captureWith(t, m, "inner", "--peer", b.Addr.String(), "icmp and outbound and host "+a.Addr.String())
		flows := captureWith(t, m, "flows", "--flows", "icmp and host "+a.Addr.String())
		expectPing(t, a.Node, b.Addr, 3)
		expectWords(t, inner.interrupt(t), "capturing inner on eth0", "3 packets captured, 0 lost")
		flows.interrupt(t)
		if got := inner.read(t, "icmp", "ip.src", "ip.dst", "icmp.type"); len(got) != 3 || strings.Join(got[0], " ") != a.Addr.String()+" "+b.Addr.String()+" 8" {
			t.Errorf("host-gw: %v", got)
		}
		if all := readFlows(t, flows.file); len(all) != 1 || all[0].Packets != 3 || all[0].ReplyPackets != 3 || all[0].Peer != l.Host(2).Addr.String() {
			t.Errorf("host-gw: flows %+v", all)
		}
		out, err := m.Command(t.Context(), "capture", "--point", "drops")
		if err == nil {
			t.Error("drops of host-gw: status 0")
		}
		expectWords(t, out, "with host-gw the kernel routes", "--point inner")
	})
	t.Run("flannel", func(t *testing.T) {
		l := newLab(t, 2)
		h1, h2 := l.Host(1), l.Host(2)
		s1, s2 := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")
		v1 := must(h1.SetupKernelVXLAN(t.Context(), 1, 8472, s1))(t)
		v2 := must(h2.SetupKernelVXLAN(t.Context(), 1, 8472, s2))(t)
		for _, err := range []error{v1.AddPeer(t.Context(), s2, v2.MAC, h2.Addr), v2.AddPeer(t.Context(), s1, v1.MAC, h1.Addr)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		both := captureWith(t, h1.Muslin(labtest.Bin), "both", "--point", "inner,outer")
		expectPing(t, h1.Node, s2.Addr(), 3)
		both.interrupt(t)
		if got := both.read(t, "frame.interface_name == inner && icmp", "ip.src", "ip.dst"); len(got) != 6 {
			t.Errorf("inner: %v", got)
		}
		if got := both.read(t, "frame.interface_name == outer && vxlan.vni == 1 && icmp", "ip.src", "ip.dst"); len(got) != 6 {
			t.Errorf("outer: %v", got)
		}
		out, err := h2.Muslin(labtest.Bin).Command(t.Context(), "capture", "--point", "drops")
		if err == nil {
			t.Error("drops of flannel: status 0")
		}
		expectWords(t, out, "no daemon behind", "does not say what it drops")
		one := captureWith(t, h1.Muslin(labtest.Bin), "", "--peer", s2.String())
		expectPing(t, h1.Node, s2.Addr(), 2)
		expectWords(t, one.interrupt(t), s1.Addr().String()+" > "+s2.Addr().String()+": icmp echo request", "[peer "+h2.Addr.String()+"]", "4 packets captured")
	})
	// A node of flannel's udp backend as it looks to others: a TUN device, and a process with that and a UDP socket. bench/rescue has
	// a real one.
	t.Run("flannel's udp", func(t *testing.T) {
		l := newLab(t, 2)
		daemons := join(t, l, `{"Type":"udp","Port":8299}`, "--tun-name", "flannel0", "--queues", "1")
		a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
		eventuallyPings(t, a.Node, b.Addr)
		unasked := *daemons[0]
		unasked.Control += ".none"
		both := captureWith(t, &unasked, "both", "--point", "inner,outer", "icmp or udp")
		text := captureWith(t, &unasked, "", "--point", "outer")
		expectPing(t, a.Node, b.Addr, 3)
		both.interrupt(t)
		h1, h2 := l.Host(1).Addr.String(), l.Host(2).Addr.String()
		expectWords(t, text.interrupt(t), "capturing outer on eth0", h2+".8299: udp: "+a.Addr.String()+" > "+b.Addr.String()+": icmp echo request", "> "+h1+".8299: udp: "+b.Addr.String()+" > "+a.Addr.String()+": icmp echo reply")
		if got := both.lines(t, "icmp and host "+b.Addr.String()); len(got) != 6 {
			t.Errorf("inner: %q", got)
		}
		if got := both.lines(t, "udp dst port 8299 and host "+h2); len(got) < 6 {
			t.Errorf("outer: %q", got)
		}
		out, err := unasked.Command(t.Context(), "capture", "--peer", h2)
		if err == nil {
			t.Error("--peer of flannel's udp: status 0")
		}
		expectWords(t, out, "say host ADDRESS instead")
	})
}

// What WireGuard carries, the daemon's or the kernel's, is captured, traced and pinged: by this host's devices where no daemon sees
// it. tcpdump reads the captures, so that it runs in a guest of bench/vm, too, where the kernel has WireGuard.
//
//	p1a ── cni0 ─ h1 (muslin) ── br0 ── h2 (muslin) ─ cni0 ── p2a
func TestWireGuardIsSeen(t *testing.T) {
	t.Parallel()
	eachWireGuard(t, func(t *testing.T, flag string, _ bool) {
		l := newLab(t, 2)
		inKernel := flag == "--wireguard=kernel"
		m := join(t, l, "wireguard", flag)[0]
		h2, a, b := l.Host(2), l.Host(1).Pods()[0], l.Host(2).Pods()[0]
		eventuallyPings(t, a.Node, b.Addr)
		both := captureWith(t, m, "both", "--point", "inner,outer", "--peer", h2.Addr.String(), "icmp or udp")
		text := captureWith(t, m, "", "--count", "2", "icmp and host "+b.Addr.String())
		flows := captureWith(t, m, "flows", "--flows", "icmp")
		expectPing(t, a.Node, b.Addr, 3)
		expectWords(t, labtest.ExpectExit(t, text.Proc, 0), "capturing inner on muslin0", a.Addr.String()+" > "+b.Addr.String()+": icmp echo request", "[peer "+h2.Addr.String()+"]")
		both.interrupt(t)
		flows.interrupt(t)
		if got := both.lines(t, "icmp and host "+b.Addr.String()); len(got) != 6 {
			t.Errorf("inner: %q", got)
		}
		const each = 16 + 96 + 16 // WireGuard's data message around 84 bytes, padded to 16
		bytes := 0                // as a superpacket may be several
		outer := both.lines(t, "udp src port 51820 and udp dst port 51820 and udp[8] == 4 and host "+h2.Addr.String())
		for _, line := range outer {
			_, length, _ := strings.Cut(line, "length ")
			n, _ := strconv.Atoi(length)
			bytes += n
		}
		if bytes < 6*each {
			t.Errorf("outer: %q", outer)
		}
		if all := readFlows(t, flows.file); len(all) != 1 || all[0].Packets != 3 || all[0].ReplyPackets != 3 || all[0].Peer != h2.Addr.String() {
			t.Errorf("flows: %+v", all)
		}
		out, err := m.Command(t.Context(), "capture", "--point", "drops", "--duration", "100ms")
		if (err != nil) != inKernel {
			t.Errorf("drops: %v, %s", err, out)
		}
		if inKernel {
			expectWords(t, out, "the kernel's WireGuard drops by itself", "--wireguard userspace")
		}

		patience := []string{"--timeout", lab.Patience(300 * time.Millisecond).String()}
		stages := "pod host route forward table encapsulate underlay receive check forward-peer deliver return receive-back deliver-back"
		if inKernel {
			stages = strings.ReplaceAll(stages, " check", "") // no daemon does
		}
		r, err := muslinTrace(t, m, append(patience, a.Addr.String(), b.Addr.String())...)
		if err != nil || r.Way != "encrypted" || r.Answer != "echo reply" || r.Arrived == nil || !*r.Arrived || r.stages() != stages {
			t.Errorf("trace: %+v, %v", r, err)
		}
		runIn(t, h2.Node, "nft", "add table ip fault; add chain ip fault c { type filter hook forward priority 0 ; }; add rule ip fault c icmp type echo-request ip daddr "+b.Addr.String()+" drop")
		if r, err = muslinTrace(t, m, append(patience, a.Addr.String(), b.Addr.String())...); err == nil || r.Stopped != "forward-peer" || r.Arrived == nil || *r.Arrived {
			t.Errorf("dropped by the other node: %+v, %v", r, err)
		}
		runIn(t, h2.Node, "nft", "delete table ip fault")
		if p, err := muslinPing(t, m, b.Addr.String(), "--count", "2"); err != nil || p.Received != 2 || p.There.Way != "encrypted" || !p.Back.Known || p.Back.Way != "encrypted" {
			t.Errorf("ping: %+v, %v", p, err)
		}
	})
}
