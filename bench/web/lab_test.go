//go:build linux

package web

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

const port = "9470"

// forward leads from loopback here to a port of a host's loopback, as ssh -L does.
func forward(t *testing.T, h *lab.Host, port string) (url string) {
	t.Helper()
	l := labtest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	var all sync.WaitGroup
	done := make(chan struct{})
	t.Cleanup(func() {
		close(done)
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer here.Close()
				var there net.Conn
				if err := h.Do(func() (err error) {
					there, err = net.Dial("tcp", "127.0.0.1:"+port)
					return err
				}); err != nil {
					return
				}
				defer there.Close()
				ended := make(chan struct{}, 2)
				for _, pair := range [][2]net.Conn{{here, there}, {there, here}} {
					all.Go(func() {
						_, _ = io.Copy(pair[0], pair[1]) // ends with either end
						ended <- struct{}{}
					})
				}
				select {
				case <-ended:
				case <-done:
				}
			})
		}
	})
	return "http://" + l.Addr().String() + "/"
}

// A daemon's page: its peers and their traffic, a peer that dies and comes back, and the daemon itself replaced while somebody
// looks on.
//
//	p1a ── h1 (muslin --web, embedded etcd) ── br0 ── h2 (muslin) ── p2a
//	                                            └──── h3 (muslin), killed
func TestLab(t *testing.T) {
	l := labtest.NewLab(t, 3)
	pageFlags := []string{"--embedded-etcd", "--network", labtest.Network, "--web", port, "--web-token-file", l.Host(1).Dir + "/web-token"}
	first := labtest.StartMuslin(t, l.Host(1), pageFlags...)
	others := []string{"--etcd-endpoints", labtest.Endpoint(l.Host(1))}
	second, third := labtest.StartMuslin(t, l.Host(2), others...), labtest.StartMuslin(t, l.Host(3), others...)
	labtest.WaitPeers(t, first, 2)
	from, to := labtest.AddPod(t, first, "a"), labtest.AddPod(t, second, "a")

	token := strings.TrimSpace(string(labtest.Must(os.ReadFile(l.Host(1).Dir + "/web-token"))(t)))
	if out := first.Output(); strings.Contains(out, token) || !strings.Contains(out, "web-token") {
		t.Errorf("the log has the token, or does not say where it is:\n%s", out)
	}
	b := open(t, 1280, 900, forward(t, l.Host(1), port))
	b.wait(5*time.Second, "label", "Token")
	eval[bool](b, `document.getElementById('token').value = "`+token+`", document.querySelector('form').submit(), true`)
	b.live()
	b.wait(15*time.Second, "#verdict", "All 2 peers are up")
	network := labtest.Status(t, second).Node.Subnet.String()
	b.wait(5*time.Second, ".table tbody", network)

	// Traffic, as the kernel's own ping makes it.
	if r, err := from.Ping(t.Context(), to.Addr, lab.PingOptions{Count: 100, Size: 1000}); err != nil || r.Received != 100 {
		t.Fatalf("%+v %v", r, err)
	}
	eval[bool](b, `document.querySelector('tr[data-subnet="`+network+`"] button').click(), true`)
	b.wait(5*time.Second, "#details", "b/s", "packets", "encapsulated", "last heardnow")
	b.wait(10*time.Second, "#details", "µs")
	if r, err := from.Ping(t.Context(), netip.MustParseAddr("10.244.255.9"), lab.PingOptions{Count: 1}); err != nil || r.Received != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	b.wait(5*time.Second, "#drops", "no-route", "no lease holds the destination")

	// A peer dies.
	gone := labtest.Status(t, third).Node.Subnet.String()
	third.Kill()
	killed := time.Now()
	b.wait(40*time.Second, "#live", gone, "is down")
	t.Logf("down on the page %v after it was killed", time.Since(killed).Round(100*time.Millisecond))
	b.wait(2*time.Second, "#verdict", "1 of 2 peers is down")
	b.wait(2*time.Second, `tr[data-subnet="`+gone+`"]`, "down for")
	if title := eval[string](b, "document.title"); !strings.HasPrefix(title, "1 down: ") {
		t.Errorf("the title is %q", title)
	}
	labtest.StartMuslin(t, l.Host(3), others...)
	b.wait(30*time.Second, "#live", gone, "is up again")

	// The daemon is replaced; the page goes on, with the same cookie.
	b.expect("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
	eval[bool](b, `document.querySelector('button.back').click(), true`)
	next := labtest.StartMuslin(t, l.Host(1), append(pageFlags, "--replace")...)
	labtest.ExpectExit(t, first.Proc, 0)
	b.wait(15*time.Second, "#details", "pid"+strconv.Itoa(next.PID()))
	b.live()
	b.wait(15*time.Second, "#verdict", "All 2 peers are up")
}
