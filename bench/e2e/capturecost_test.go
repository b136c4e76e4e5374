//go:build linux

package e2e

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// BenchmarkCapture is what a capture costs the daemon while a pod sends another 1 Gb/s by TCP: the processor time of the
// sender's daemon and of the receiver's, each with a capture, and of a capture itself, in percent of one processor. The
// figures of docs/capture.md come from
//
//	make build && MUSLIN_BIN=$PWD/bin/muslin go test -run xxx -bench BenchmarkCapture -benchtime 1x ./bench/e2e
func BenchmarkCapture(b *testing.B) {
	l, err := lab.New(b.Context(), lab.Config{Hosts: 2, Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var daemons []*lab.Muslin
	for _, h := range l.Hosts() {
		flags := []string{"--etcd-endpoints", endpoint(l.Host(1))}
		if h.Number == 1 {
			flags = []string{"--embedded-etcd", "--network", network}
		}
		m, err := h.StartMuslin(b.Context(), labtest.Bin, flags...)
		if err == nil {
			daemons = append(daemons, m)
			_, err = m.AddPod(b.Context(), "a")
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(2 * time.Second) // until each knows the other
	from, to := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	for _, c := range []struct {
		name string
		args []string // nil: no capture
	}{
		{"none", nil},
		{"drops", []string{"--point", "drops"}},
		{"filter that nothing matches", []string{"udp port 9"}},
		{"tcpflags filter", []string{"tcp[tcpflags] & (tcp-syn|tcp-fin) != 0"}},
		{"outer, filter that nothing matches", []string{"--point", "outer", "vxlan and udp port 9"}},
		{"flows", []string{"--flows"}},
		{"everything, 128 bytes of each", []string{"--snaplen", "128"}},
		{"everything", []string{}},
		{"none again", nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			var readers []*lab.Proc
			if c.args != nil {
				for _, m := range daemons {
					p, err := m.Host.Start("cost-"+strconv.Itoa(len(readers))+strings.ReplaceAll(c.name, " ", "-"), nil, append([]string{labtest.Bin, "capture", "--control", m.Control, "-w", "/dev/null"}, c.args...)...)
					if err == nil {
						err = p.WaitOutput(b.Context(), "Ctrl-C ends it")
					}
					if err != nil {
						b.Fatal(err)
					}
					readers = append(readers, p)
				}
			}
			var bits, sender, receiver, reader float64
			for range b.N {
				before := []time.Duration{cpuTime(b, daemons[0].Proc), cpuTime(b, daemons[1].Proc)}
				began := time.Now()
				sent, err := pacedTCP(from, to, 1e9/8, 8*time.Second)
				if err != nil {
					b.Fatal(err)
				}
				took := time.Since(began).Seconds()
				bits += float64(sent) * 8 / took / 1e6
				sender += 100 * (cpuTime(b, daemons[0].Proc) - before[0]).Seconds() / took
				receiver += 100 * (cpuTime(b, daemons[1].Proc) - before[1]).Seconds() / took
				for _, p := range readers {
					reader += 100 * cpuTime(b, p).Seconds() / took / float64(len(readers))
				}
			}
			for _, p := range readers {
				if err := p.Signal(syscall.SIGINT); err != nil {
					b.Fatal(err)
				}
				if _, err := p.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				out := strings.TrimSpace(p.Output())
				b.Log(out[strings.LastIndex(out, "\n")+1:])
			}
			n := float64(b.N)
			b.ReportMetric(bits/n, "Mb/s")
			b.ReportMetric(sender/n, "%sender")
			b.ReportMetric(receiver/n, "%receiver")
			b.ReportMetric(reader/n, "%reader")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func cpuTime(b *testing.B, p *lab.Proc) time.Duration {
	b.Helper()
	d, err := p.CPU()
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// pacedTCP sends so many bytes a second for a time, and returns how many the receiver has got.
func pacedTCP(from, to *lab.Pod, rate int, d time.Duration) (int64, error) {
	var listener *net.TCPListener
	if err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Addr, 0)))
		return err
	}); err != nil {
		return 0, err
	}
	defer listener.Close()
	got := make(chan int64, 1)
	go func() {
		var n int64
		if c, err := listener.Accept(); err == nil {
			n, _ = io.Copy(io.Discard, c)
			c.Close()
		}
		got <- n
	}()
	var conn *net.TCPConn
	if err := from.Do(func() (err error) {
		conn, err = net.DialTCP("tcp", nil, listener.Addr().(*net.TCPAddr))
		return err
	}); err != nil {
		return 0, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) }); err != nil || failed != nil {
		return 0, errors.Join(err, failed)
	}
	piece := make([]byte, 1<<18)
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err := conn.Write(piece); err != nil {
			return 0, err
		}
	}
	conn.Close()
	return <-got, nil
}
