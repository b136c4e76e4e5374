//go:build linux

package rescue

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Before anybody takes over, one looks: `muslin doctor` and `muslin capture` beside each of flannel's backends, where no muslin
// daemon is.
func TestBesideFlannel(t *testing.T) {
	lab.RequireTool(t, "tcpdump")
	for _, c := range []struct {
		kind  string
		on    string // devices, as it says
		outer string // a filter of tcpdump's for its datagrams; empty: it has none
		knows bool   // who the peers are
	}{
		{vxlan, "inner, outer on flannel.1, eth0;", "udp dst port 8472", true},
		{dual, "inner, outer on flannel.1, eth0, flannel-v6.1;", "udp dst port 8472", true},
		{direct, "inner, outer on flannel.1, eth0;", "", true},
		{hostGW, "inner, outer on eth0;", "", true},
		{udp, "inner, outer on flannel0, eth0;", "udp dst port 8285", false},
	} {
		if flanneld() == "" && c.kind == udp {
			continue // its TUN device is flanneld's
		}
		t.Run(c.kind, func(t *testing.T) {
			s := newScene(t, c.kind, flanneld())
			h1, h2 := s.lab.Host(1), s.lab.Host(2)
			if flanneld() != "" || c.kind != hostGW { // where nothing says that flannel is here
				s.doctor("")
			}
			start := func(name string, args ...string) *lab.Proc {
				m := h1.Muslin(labtest.Bin)
				p := labtest.Must(h1.Start("capture-"+name, nil, append([]string{labtest.Bin, "capture", "--control", m.Control, "--subnet-file", s.nodes[0].file}, args...)...))(t)
				if err := p.WaitOutput(t.Context(), "Ctrl-C ends it"); err != nil {
					t.Fatal(err)
				}
				return p
			}
			end := func(p *lab.Proc) string {
				if err := p.Signal(syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				return labtest.ExpectExit(t, p, 0)
			}
			file := filepath.Join(t.TempDir(), "both")
			both := start("both", "--point", "inner,outer", "-w", file, "icmp or udp")
			text := start("text", "icmp and host "+s.nodes[1].pod.Addr.String())
			ping := func() {
				r, err := s.nodes[0].pod.Ping(t.Context(), s.nodes[1].pod.Addr, lab.PingOptions{Count: 3})
				if err != nil || r.Received != 3 {
					t.Errorf("%+v, %v", r, err)
				}
			}
			ping()
			says := end(text)
			labtest.ExpectWords(t, says, s.nodes[0].pod.Addr.String()+" > "+s.nodes[1].pod.Addr.String()+": icmp echo request", "6 packets captured, 0 lost")
			if peer := "[peer " + h2.Addr.String() + "]"; strings.Contains(says, peer) != c.knows {
				t.Errorf("%q is there: %v, want %v in\n%s", peer, !c.knows, c.knows, says)
			}
			labtest.ExpectWords(t, end(both), c.on)
			count := func(filter string) int {
				out, err := exec.CommandContext(t.Context(), "tcpdump", "-Z", "root", "-n", "-r", file, filter).Output()
				if err != nil {
					t.Errorf("tcpdump: %v", err)
				}
				return strings.Count(string(out), s.nodes[1].pod.Addr.String())
			}
			if n := count("icmp and host " + s.nodes[1].pod.Addr.String()); n != 6 {
				t.Errorf("%d packets, want 6", n)
			}
			if c.outer == "" {
				return
			}
			out := labtest.Must(exec.CommandContext(t.Context(), "tcpdump", "-Z", "root", "-n", "-r", file, c.outer+" and host "+h2.Addr.String()).Output())(t)
			if n := strings.Count(string(out), h2.Addr.String()); n < 6 {
				t.Errorf("%d datagrams, want 6 at least:\n%s", n, out)
			}
			if !c.knows {
				return
			}
			peer := start("peer", "--peer", h2.Addr.String(), "icmp and host "+s.nodes[1].pod.Addr.String())
			ping()
			labtest.ExpectWords(t, end(peer), "6 packets captured, 0 lost")
		})
	}
}
