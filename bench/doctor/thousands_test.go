//go:build linux

package doctor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Ten thousand peers, of which five hundred are dead: the doctor names them all at once, in its time, and asks no more than it
// may. One host answers for all that live. What the daemon would know after some minutes, that those are down, is put into its
// answer: it stands for the daemon on another socket.
//
//	h1 (muslin, udp) ── br0 ── h2: 198.19.0.0/17 answers, 198.19.128.0/18 is off, 198.19.192.0/18 answers nothing but ping
func TestThousands(t *testing.T) {
	lab.RequireTool(t, "nft")
	const peers, off, mute = 10_000, 400, 100
	l := labtest.NewLab(t, 2)
	h1, h2 := l.Host(1), l.Host(2)
	sh(t, h1.Node, "ip route add 198.19.0.0/16 via 198.18.0.2; nft 'table inet count { chain c { type filter hook output priority 0; oifname eth0 counter; }; }'")
	sh(t, h2.Node, `sysctl -qw net.ipv4.ip_forward=1; ip route add local 198.19.0.0/17 dev lo; ip route add blackhole 198.19.128.0/18; ip route add local 198.19.192.0/18 dev lo
		nft 'table inet fault { chain c { type filter hook input priority 0; ip daddr 198.19.192.0/18 meta l4proto { tcp, udp } drop; }; }'`)
	answerAll(t, h2.Node)

	file := make(map[string]any)
	down := make(map[string]bool)
	for i := range peers {
		at := netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})
		switch {
		case i < off:
			at = netip.AddrFrom4([4]byte{198, 19, 128 + byte(i>>8), byte(i)})
		case i < off+mute:
			at = netip.AddrFrom4([4]byte{198, 19, 192 + byte(i>>8), byte(i)})
		}
		down[at.String()] = i < off+mute
		file[fmt.Sprintf("10.%d.%d.0-24", i>>8, i&0xff)] = map[string]any{"PublicIP": at}
	}
	file["10.200.0.0-24"] = map[string]any{"PublicIP": h1.Addr}
	path := h1.Dir + "/peers.json"
	if err := os.WriteFile(path, labtest.Must(json.Marshal(file))(t), 0o644); err != nil {
		t.Fatal(err)
	}
	m := labtest.StartMuslin(t, h1, "--peers-file", path, "--network", "10.0.0.0/8", "--backend", "udp")
	socket := h1.Dir + "/other.sock"
	answerFor(t, m.Control, socket, down)

	command := exec.Command("ip", "netns", "exec", h1.NetNS, m.Bin, "doctor", "--output", "json", "--control", socket)
	before, began := packetsOut(t, h1.Node), time.Now()
	out, _ := command.Output() // it exits with 2
	took, sent := time.Since(began), packetsOut(t, h1.Node)-before
	r := new(report)
	if err := json.Unmarshal(out, r); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	r.raw = string(out)
	memory := command.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
	t.Logf("%v, %d packets, %d MiB", took, sent, memory)
	if took > 15*time.Second || sent > 6000 || memory > 400 {
		t.Errorf("it took %v, %d packets and %d MiB; want 15 s, 6000 and 400 at most", took, sent, memory)
	}
	want := map[string]string{"public-ip-unreachable": fmt.Sprintf("so it is with %d nodes", off), "udp-filtered-at-peer": fmt.Sprintf("so it is with %d nodes", mute)}
	for _, f := range r.Findings {
		if !down[f.Node] || !strings.Contains(f.Summary, want[f.ID]) {
			t.Errorf("%s of %s: %s; want %q", f.ID, f.Node, f.Summary, want)
		}
		delete(want, f.ID)
	}
	if len(want) > 0 {
		t.Errorf("not found: %q: %s", want, r.raw)
	}
}

// packetsOut is what the counter says.
func packetsOut(t *testing.T, n *lab.Node) int {
	t.Helper()
	_, rest, _ := strings.Cut(sh(t, n, "nft list table inet count"), "counter packets ")
	var packets int
	if _, err := fmt.Sscan(rest, &packets); err != nil {
		t.Fatal(err)
	}
	return packets
}

// answerAll answers each echo request of flannel's udp framing from the address that it went to.
func answerAll(t *testing.T, n *lab.Node) {
	t.Helper()
	conn := labtest.ListenUDP(t, n, netip.MustParseAddrPort("0.0.0.0:8285"), 1<<20)
	p := ipv4.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 1<<11)
		for {
			n, about, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			const icmp = 20
			if n < icmp+8 || buf[icmp] != 8 || about == nil {
				continue
			}
			var src [4]byte
			copy(src[:], buf[12:])
			copy(buf[12:16], buf[16:20])
			copy(buf[16:20], src[:])
			buf[icmp] = 0
			sum := uint32(binary.BigEndian.Uint16(buf[icmp+2:])) + 0x0800 // RFC 1624
			binary.BigEndian.PutUint16(buf[icmp+2:], uint16(sum+sum>>16))
			_, _ = p.WriteTo(buf[:n], &ipv4.ControlMessage{Src: about.Dst}, &net.UDPAddr{IP: from.(*net.UDPAddr).IP, Port: 8285})
		}
	}()
}

// answerFor serves a daemon's status on another socket, and says of some peers that they have been down for five minutes, and of the
// others that they are up.
func answerFor(t *testing.T, control, socket string, down map[string]bool) {
	t.Helper()
	ask := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", control)
	}}}
	l := labtest.Must(net.Listen("unix", socket))(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := ask.Get("http://muslin" + r.URL.String())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer resp.Body.Close()
		var status map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		peers, _ := status["peers"].([]any)
		for _, p := range peers {
			peer := p.(map[string]any)
			ill := down[peer["public_ip"].(string)]
			if peer["up"] = !ill; ill {
				peer["down_since"] = time.Now().Add(-5 * time.Minute)
			}
		}
		_ = json.NewEncoder(w).Encode(status)
	})}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
}
