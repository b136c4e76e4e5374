//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
)

// traced is `muslin trace --output json`, declared a second time on purpose.
type traced struct {
	Way     string `json:"way"`
	SentBy  string `json:"sent_by"`
	Arrived *bool  `json:"arrived"`
	Answer  string `json:"answer"`
	Stopped string `json:"stopped"`
	Reason  string `json:"reason"`
	Fix     string `json:"fix"`
	Steps   []struct {
		Stage string `json:"stage"`
		Node  string `json:"node"`
		State string `json:"state"`
		Text  string `json:"text"`
	} `json:"steps"`
}

// stages are the names of those that it passed.
func (t *traced) stages() string {
	var all []string
	for _, s := range t.Steps {
		all = append(all, s.Stage)
	}
	return strings.Join(all, " ")
}

// muslinTrace runs `muslin trace`; err is that it has another exit status than 0.
func muslinTrace(t *testing.T, m *lab.Muslin, args ...string) (r traced, err error) {
	t.Helper()
	out, err := m.Host.Output(t.Context(), append([]string{m.Bin, "trace", "--control", m.Control, "--output", "json"}, args...)...)
	if out == "" {
		return r, err
	}
	if failed := json.Unmarshal([]byte(out), &r); failed != nil {
		t.Fatalf("trace %v: %v, %v in %s", args, err, failed, out)
	}
	return r, err
}

// muslinTraceUntil runs it again, two times at most, until it is good: on a busy machine a packet comes later than it waits for, or
// the peer answers too late to be asked.
func muslinTraceUntil(t *testing.T, m *lab.Muslin, good func(r *traced, err error) bool, args ...string) (r traced, err error) {
	t.Helper()
	for range 3 {
		if r, err = muslinTrace(t, m, args...); good(&r, err) {
			break
		}
	}
	return r, err
}

// A packet is followed from a pod of h1 to wherever it goes, and stops where something is in its way. The wrong VNI and MAC are
// written into the datagrams as they come in at h2.
func TestTrace(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "tcpdump", "nft")
	x := newMixed(t)
	h1, h2, h3, m1, v, a, b, c, a6, b6 := x.Host(1), x.Host(2), x.Host(3), x.m1, x.flannel, x.a, x.b, x.c, x.a6, x.b6
	near := addPod(t, m1, "b")
	n1, n2 := status(t, m1).Node, status(t, x.m2).Node
	base1, base2 := n1.Subnet.Addr(), n2.Subnet.Addr()
	var listener *net.TCPListener
	if err := b.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", &net.TCPAddr{IP: b.Addr.AsSlice()})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	open := fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)

	wire := startCapture(t, b.Node, t.TempDir(), "eth0", "icmp[icmptype] == icmp-echo or tcp[tcpflags] & tcp-syn != 0 or (udp and dst port 9)")
	const whole = "pod host route forward table encapsulate underlay receive check forward-peer deliver return receive-back deliver-back"
	for _, c := range []struct {
		args   []string
		sentBy string
		answer string
		stages string
	}{
		{[]string{a.Addr.String(), b.Addr.String()}, "pod", "echo reply", whole},
		{[]string{a.Addr.String(), b.Addr.String(), "tcp", open}, "pod", "SYN/ACK", whole},
		{[]string{a.Addr.String(), b.Addr.String(), "tcp", "9"}, "pod", "RST", whole},
		{[]string{a.Addr.String(), b.Addr.String(), "udp", "9"}, "pod", "port unreachable", whole},
		{[]string{a6.Addr.String(), b6.Addr.String()}, "pod", "echo reply", whole},
		{[]string{a6.Addr.String(), b6.Addr.String(), "tcp", "9"}, "pod", "RST", whole},
		{[]string{base1.String(), b.Addr.String()}, "host", "echo reply", strings.ReplaceAll(whole, " host", "")},
		{[]string{a.Addr.String(), base2.String()}, "pod", "echo reply", whole},
		{[]string{a.Addr.String(), c.Addr.String()}, "pod", "echo reply", "pod host route forward table encapsulate underlay receive deliver-back"},
		{[]string{a.Addr.String(), near.Addr.String()}, "pod", "echo reply", "pod host route forward deliver deliver-back"},
	} {
		r, err := muslinTrace(t, m1, c.args...)
		if err != nil || r.SentBy != c.sentBy || r.Answer != c.answer || r.stages() != c.stages || r.Stopped != "" || r.Arrived == nil || !*r.Arrived {
			t.Errorf("trace %v: %+v, %v", c.args, r, err)
		}
	}
	expectTraced(t, wire, a.Addr, base1)
	expectCaptured6(t, m1, v, a6, b6)
	text := must(m1.Command(t.Context(), "trace", a.Addr.String(), b.Addr.String()))(t)
	t.Log("\n" + text)
	expectWords(t, text, "on this node", "on the destination's node", "VXLAN, VNI 1", "there and back: echo reply")

	nft := func(n *lab.Node, hook, rule string) func() {
		return func() {
			runIn(t, n, "nft", "add table ip fault; add chain ip fault c { type filter hook "+hook+" ; }; add rule ip fault c "+rule)
		}
	}
	mend := func(n *lab.Node) func() { return func() { runIn(t, n, "nft", "delete table ip fault") } }
	run := func(n *lab.Node, command string) func() {
		return func() { runIn(t, n, strings.Fields(command)...) }
	}
	nothing := func() {}
	gateway := must(m1.PodNetwork())(t).Gateway.Addr()
	to := b.Addr.String()
	for _, f := range []struct {
		name   string
		inject func()
		mend   func()
		args   []string
		stage  string
		says   string // in the reason or the fix
	}{
		{"no route in the pod", run(a.Node, "ip route del default"), run(a.Node, "ip route add default via "+gateway.String()), []string{to}, "pod", "has no route"},
		{"a firewall in the pod", nft(a.Node, "output priority 0", "icmp type echo-request drop"), mend(a.Node), []string{to}, "pod", "OUTPUT"},
		{"the pod's device is down", run(h1.Node, "ip link set veth-a down"), func() { runIn(t, h1.Node, "ip", "link", "set", "veth-a", "up"); eventuallyPings(t, a.Node, b.Addr) }, []string{to}, "host", "came to no device"},
		{"another program's route", run(h1.Node, "ip route add "+to+"/32 via "+h3.Addr.String()), run(h1.Node, "ip route del "+to+"/32"), []string{to}, "route", "another program's route"},
		{"FORWARD here", nft(h1.Node, "forward priority 0", "icmp type echo-request drop"), mend(h1.Node), []string{to}, "forward", "FORWARD"},
		{"no lease", nothing, nothing, []string{"10.244.250.9"}, "table", "no node of the overlay has a lease"},
		{"no such pod here", nothing, nothing, []string{n1.Subnet.Addr().Next().Next().Next().Next().Next().String()}, "deliver", "nobody on cni0"},
		{"a firewall for the datagram here", nft(h1.Node, "output priority 0", "udp dport 8472 ip daddr "+h2.Addr.String()+" drop"), mend(h1.Node), []string{to}, "encapsulate", "send-failed"},
		{"filtered on the way, asked by the other family", nft(h2.Node, "prerouting priority -300", "udp dport 8472 ip saddr "+h1.Addr.String()+" drop"), mend(h2.Node), []string{to}, "receive", "did not come to the other node"},
		{"VNI", nft(h2.Node, "prerouting priority -300", "udp dport 8472 ip saddr "+h1.Addr.String()+" @th,96,24 set 9"), mend(h2.Node), []string{to}, "check", "vxlan-vni"},
		{"VtepMAC", nft(h2.Node, "prerouting priority -300", "udp dport 8472 ip saddr "+h1.Addr.String()+" @th,128,48 set 0x0a0000000009"), mend(h2.Node), []string{to}, "check", "vxlan-mac"},
		{"FORWARD there", nft(h2.Node, "forward priority 0 ; policy drop", "ip saddr 192.0.2.1 accept"), mend(h2.Node), []string{to}, "forward-peer", "fault"},
		{"FORWARD there, of some packets", nft(h2.Node, "forward priority 0", "icmp type echo-request ip daddr "+to+" drop"), mend(h2.Node), []string{to}, "forward-peer", "FORWARD"},
		{"rejected there with a TCP reset", nft(h2.Node, "forward priority 0", "ip daddr "+to+" tcp dport 9 reject with tcp reset"), mend(h2.Node), []string{to, "tcp", "9"}, "forward-peer", "in the destination's name"},
		{"rejected here with a TCP reset", nft(h1.Node, "forward priority 0", "ip daddr "+to+" tcp dport 9 reject with tcp reset"), mend(h1.Node), []string{to, "tcp", "9"}, "forward", "in the destination's name"},
		{"rejected on the flannel node", nft(h3.Node, "forward priority 0", "ip daddr "+c.Addr.String()+" icmp type echo-request reject with icmp type admin-prohibited"), mend(h3.Node), []string{c.Addr.String()}, "receive", v.Subnet.Addr().String() + " has sent an ICMP error about it: prohibited"},
		{"no such pod there", nothing, nothing, []string{n2.Subnet.Addr().Next().Next().Next().Next().String()}, "deliver", "nobody on cni0"},
		{"no bridge there", run(h2.Node, "ip link set cni0 down"), func() { runIn(t, h2.Node, "ip", "link", "set", "cni0", "up"); eventuallyPings(t, a.Node, b.Addr) }, []string{to}, "forward-peer", "bridge is missing"},
		{"the pod does not answer", nft(b.Node, "input priority 0", "icmp type echo-request drop"), mend(b.Node), []string{to}, "deliver", "does not answer"},
		{"the answer is not forwarded", nft(h2.Node, "forward priority 0", "icmp type echo-reply drop"), mend(h2.Node), []string{to}, "return", "did not give the answer"},
		{"the answer is lost on the way", nft(h1.Node, "prerouting priority -300", "udp dport 8472 ip saddr "+h2.Addr.String()+" drop"), mend(h1.Node), []string{to}, "receive-back", "did not come here"},
		{"the answer is dropped here", nft(h1.Node, "prerouting priority -300", "udp dport 8472 ip saddr "+h2.Addr.String()+" @th,96,24 set 9"), mend(h1.Node), []string{to}, "receive-back", "vxlan-vni"},
		{"the answer is not forwarded here", nft(h1.Node, "forward priority 0", "icmp type echo-reply drop"), mend(h1.Node), []string{to}, "deliver-back", "FORWARD"},
		{"no pod on the flannel node", nothing, nothing, []string{v.Subnet.Addr().Next().Next().Next().Next().String()}, "receive", "no muslin there answers"},
		{"the flannel node is away", nft(h3.Node, "prerouting priority -300", "udp dport 8472 drop"), mend(h3.Node), []string{c.Addr.String()}, "receive", "nothing comes back over the overlay"},
	} {
		f.inject()
		good := func(r *traced, err error) bool {
			back := f.stage == "deliver" || f.stage == "return" || strings.HasSuffix(f.stage, "back")
			return err != nil && r.Stopped == f.stage && strings.Contains(r.Reason+r.Fix, f.says) && r.Fix != "" && (r.Arrived == nil || !*r.Arrived || back)
		}
		r, err := muslinTraceUntil(t, m1, good, append([]string{"--timeout", lab.Patience(300 * time.Millisecond).String(), a.Addr.String()}, f.args...)...)
		f.mend()
		if !good(&r, err) {
			t.Errorf("%s: it stops at %q, arrived %v, want %q with %q: %s; %s (%v)", f.name, r.Stopped, r.Arrived != nil && *r.Arrived, f.stage, f.says, r.Reason, r.Fix, err)
			for _, s := range r.Steps {
				t.Log(s.State, s.Stage, s.Text)
			}
		} else {
			t.Logf("%s: %s: %s [%s]", f.name, r.Stopped, r.Reason, r.Fix)
		}
	}

	runIn(t, h1.Node, "nft", "add table ip fault; add chain ip fault c { type nat hook postrouting priority 99 ; }; add rule ip fault c ip daddr 10.244.0.0/16 oifname muslin0 masquerade")
	if r, err := muslinTrace(t, m1, a.Addr.String(), to); err != nil || r.Stopped != "" || len(r.Steps) < 4 || !strings.Contains(r.Steps[3].Text, "the source "+base1.String()+" in place of "+a.Addr.String()) {
		t.Errorf("masqueraded: %+v, %v", r, err)
	}
	mend(h1.Node)()

	// A pod with an address that is not its node's.
	foreign := netip.MustParseAddr("10.244.251.9")
	runIn(t, a.Node, "ip", "addr", "add", foreign.String()+"/32", "dev", "eth0")
	runIn(t, h1.Node, "ip", "route", "add", foreign.String()+"/32", "dev", "cni0")
	if r, err := muslinTrace(t, m1, foreign.String(), to); err == nil || r.Stopped != "check" || !strings.Contains(r.Reason, "inner-source") {
		t.Errorf("a foreign source: %+v, %v", r, err)
	}
	runIn(t, h1.Node, "ip", "route", "del", foreign.String()+"/32", "dev", "cni0")
	runIn(t, a.Node, "ip", "addr", "del", foreign.String()+"/32", "dev", "eth0")
	for words, says := range map[string]string{
		to + " " + a.Addr.String():            "is on another node, " + h2.Addr.String(),
		"192.0.2.1 " + to:                     "does not lie in the overlay",
		a.Addr.String() + " 192.0.2.1":        "does not lie in the overlay",
		"10.244.252.1 " + to:                  "nobody has a lease for it",
		a.Addr.String() + " " + to + " tcp":   "to which port?",
		a.Addr.String() + " " + to + " sctp":  "want icmp, tcp or udp",
		a.Addr.String() + " " + to + " tcp 0": "want 1 to 65535",
	} {
		out, err := m1.Command(t.Context(), append([]string{"trace"}, strings.Fields(words)...)...)
		if err == nil {
			t.Errorf("trace %s has status 0", words)
		}
		expectWords(t, out, says)
	}
}

// expectCaptured6 wants IPv6 in IPv6 in a capture of one peer by that peer's IPv6 address, and in one on a node of flannel's, which
// has no daemon.
func expectCaptured6(t *testing.T, m *lab.Muslin, flannel *kernel6, from, to *lab.Pod) {
	t.Helper()
	here := captureWith(t, m, "six", "--point", "inner,outer", "--peer", hostAddr6(m.Host.Lab().Host(2)).String(), "ip6")
	there := captureWith(t, m.Host.Lab().Host(3).Muslin(m.Bin), "six", "--point", "inner,outer", "ip6")
	base := flannel.subnet6.Addr()
	if err := errors.Join(ping6(t, from, to.Addr, 1000), ping6(t, from, base, 1000)); err != nil { // three times each
		t.Error(err)
	}
	here.interrupt(t)
	there.interrupt(t)
	for c, want := range map[*muslinCapture]string{here: to.Addr.String(), there: base.String()} {
		inner := c.lines(t, "icmp6 and host "+from.Addr.String()+" and host "+want)
		// tcpdump takes the datagrams for OTV, and shows what is inside all the same.
		outer := strings.Join(c.lines(t, "ip6 and udp dst port 8472"), "\n")
		requests := strings.Count(outer, "\nIP6 "+from.Addr.String()+" > "+want+": ICMP6, echo request")
		replies := strings.Count(outer, "\nIP6 "+want+" > "+from.Addr.String()+": ICMP6, echo reply")
		if len(inner) != 6 || requests != 3 || replies != 3 {
			t.Errorf("to %s: inner %q, outer:\n%s", want, inner, outer)
		}
		if got := c.lines(t, "ip"); len(got) != 0 {
			t.Errorf("to %s: IPv4 as well: %q", want, got)
		}
	}
	if got := here.lines(t, "host "+base.String()); len(got) != 0 {
		t.Errorf("another peer's: %q", got)
	}
}

// expectTraced wants tcpdump inside the destination to have seen the packets: of the pod's with a TTL that two hosts have taken
// one off, each once, and nothing behind the SYN but what kernels say.
func expectTraced(t *testing.T, wire *capture, pod, host netip.Addr) {
	t.Helper()
	eventually(t, lab.Patience(5*time.Second), func() error {
		frames, err := wire.packets()
		if err != nil {
			return err
		}
		seen := make(map[string]int)
		for _, f := range frames {
			p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.NoCopy)
			ip, _ := p.NetworkLayer().(*layers.IPv4)
			if ip == nil {
				continue
			}
			who := ip.SrcIP.String()
			switch {
			case who == pod.String() && ip.TTL == 62:
				seen["pod's "+ip.Protocol.String()]++
			case who == host.String() && ip.TTL == 63:
				seen["host's "+ip.Protocol.String()]++
			}
		}
		var wrong []error
		for what, want := range map[string]int{"pod's TCP": 2, "pod's UDP": 1, "host's ICMPv4": 1} {
			if seen[what] != want {
				wrong = append(wrong, fmt.Errorf("%d of %s, want %d", seen[what], what, want))
			}
		}
		if seen["pod's ICMPv4"] == 0 {
			wrong = append(wrong, errors.New("no ping of the pod's"))
		}
		return errors.Join(wrong...)
	})
}
