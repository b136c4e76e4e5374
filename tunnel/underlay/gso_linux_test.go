package underlay

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// checkPayloads wants just these datagrams, in order.
func checkPayloads(t testing.TB, got []received, want ...[]byte) {
	t.Helper()
	var w []string
	for _, d := range want {
		w = append(w, string(d))
	}
	var g []string
	for _, r := range got {
		g = append(g, r.payload)
	}
	if !slices.Equal(g, w) {
		t.Errorf("received %s,\nwant %d datagrams beginning with %.8x", summary(got), len(want), want)
	}
}

// Over loopback nothing cuts a run on its way: the receiver sees what the sender said it is.
func TestRunsOverLoopback(t *testing.T) { eachFamily(t, runsOverLoopback) }

func runsOverLoopback(t *testing.T, local netip.Addr) {
	headers := 28 + 14
	if local.Is6() {
		headers = 48 + 14
	}
	for _, c := range []struct {
		sender, receiver string
		whole            bool
	}{
		{"auto", "auto", true},
		{"-udp-gso", "auto", false},
		{"auto", "-udp-gro", false},
		{"none", "none", false},
	} {
		t.Run(c.sender+" to "+c.receiver, func(t *testing.T) {
			receiver, sender := open(t, c.receiver, on(local)), open(t, c.sender, on(local))
			to := boundTo(t, receiver.queues[0].listener)
			for _, r := range []struct{ n, size, tail int }{
				{2, 100, 100}, {2, 100, 4}, {10, 1450, 1450}, {10, 1450, 7}, {45, 1450, 1000}, {maxSegments, 50, 49},
				{2, 32740, 32740}, {2, tunnel.MaxPayload/2 + 1, tunnel.MaxPayload / 2},
			} {
				all := datagrams(r.n, r.size, r.tail)
				for _, m := range []tunnel.Message{run(to, 1, all...), solid(to, 1, all...)} {
					m.ECN = 1
					send(t, sender, m)
					got, joined := receive(t, receiver, r.n, 5, 1<<16)
					checkPayloads(t, got, all...)
					want := slices.Repeat([]int{1}, r.n)
					// Of what is longer than gso_max_size with all headers (gso_features_check), even
					// Ethernet's here, each device makes datagrams.
					if c.whole && m.Len+headers < 1<<16 {
						want = []int{r.n}
					}
					if !slices.Equal(joined, want) {
						t.Errorf("%+v: arrived as %v", r, joined)
					}
					for _, d := range got {
						if on := sender.cfg.Features.On(kernel.OuterECN); on != (d.ecn == 1) {
							t.Fatalf("%+v: ECN %d", r, d.ecn)
						}
					}
				}
			}
		})
	}
}

// Over a link that carries no runs all of it arrives, marks included, and the far end's GRO may join it.
func TestRunsOverALink(t *testing.T) {
	l := newLink6(t)
	// veth has its receiver do GRO only where its sender could not have handed over whole TCP superpackets
	// (veth_skb_is_eligible_for_gro).
	l.near.Sh(t, "ethtool -K out0 tso off")
	l.far.Sh(t, "ethtool -K far0 gro on")
	eachFamily(t, func(t *testing.T, local netip.Addr) { runsOverALink(t, l, local.Is6()) })
}

func runsOverALink(t *testing.T, l *link, six bool) {
	for _, far := range []string{"auto", "-udp-gro", "none"} {
		t.Run(far, func(t *testing.T) {
			sender, receiver := l.pairOf(t, six, "auto", far, nil)
			defer sender.Close()
			defer receiver.Close()
			r := newTraffic(5)
			arrived := newArrivals(r, sender)
			most := 0
			for range 20 {
				before := len(r.want)
				var ms []tunnel.Message
				for range tunnel.BatchSize / 2 {
					ms = append(ms, r.message(netip.AddrPortFrom(receiver.cfg.Local, 8472)))
				}
				done := make(chan error, 1)
				go func() { done <- sender.queues[0].Send(ms) }()
				got, joined := receive(t, receiver, len(r.want)-before, 8, 1<<16)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				arrived.check(t, got)
				most = max(most, slices.Max(joined))
			}
			if gro := receiver.cfg.Features.On(kernel.UDPGRO); gro != (most > 1) {
				t.Errorf("UDP_GRO %v: up to %d datagrams came in one piece", gro, most)
			}
		})
	}
}

// refusals are runs that the kernel refuses in one piece and takes datagram by datagram: whatever else is in
// the batch, all arrives once and in order, and no more is given up than need be.
var refusals = []struct {
	name     string
	segments int                              // that the sender believes in
	spoil    func(t *testing.T, sender *Conn) // makes senders[1] refuse
	run      func(to netip.AddrPort) (m tunnel.Message, all [][]byte)
	left     int // what senders[1] still takes in one piece
	reason   string
}{
	{
		// UDP_MAX_SEGMENTS is 128, and 64 before Linux 6.9.
		name: "too many segments (EINVAL)", segments: 200, left: maxSegments, reason: "off for 0 and limited for 1 of 16 source ports",
		run: func(to netip.AddrPort) (tunnel.Message, [][]byte) {
			all := datagrams(199, 50, 20)
			return solid(to, 1, all...), all
		},
	},
	{
		// udp_send_skb has no GSO without a checksum.
		name: "for no reason that we know (EINVAL)", segments: maxSegments, left: 1, reason: "off for 1 and limited for 0 of 16 source ports",
		spoil: func(t *testing.T, sender *Conn) {
			setInt(t, sender.senders[1].socket, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		},
		run: func(to netip.AddrPort) (tunnel.Message, [][]byte) {
			all := datagrams(maxSegments, 50, 20)
			return run(to, 1, all...), all
		},
	},
}

func TestRefusedRunIsReplayed(t *testing.T) {
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			var log logbook
			receiver := open(t, "auto", nil)
			sender := open(t, "auto", func(cfg *Config) {
				*cfg = config(t, "auto", &log)
				cfg.MaxSegments = c.segments
			})
			if c.spoil != nil {
				c.spoil(t, sender)
			}
			to := boundTo(t, receiver.queues[0].listener)
			refused, all := c.run(to)
			refused.ECN = 2
			other := datagrams(5, 300, 300)
			for round := range 3 {
				again := refused
				send(t, sender, run(to, 1, []byte("first")), refused, run(to, 1, []byte("then")), again, run(to, 1, other...), run(to, 1, []byte("last")))
				got, _ := receive(t, receiver, 3+2*len(all)+5, 8, 1<<16)
				checkPayloads(t, got, slices.Concat([][]byte{[]byte("first")}, all, [][]byte{[]byte("then")}, all, other, [][]byte{[]byte("last")})...)
				for i, d := range got {
					if replayed := len(d.payload) == 50; replayed != (d.ecn == 2) && len(d.payload) != 20 {
						t.Fatalf("datagram %d, replayed %v: ECN %d", i, replayed, d.ecn)
					}
				}
				log.check(t, "udp-gso", 1)
				if f := sender.gsoFeature(); !f.On || !strings.Contains(f.Reason, c.reason) || !strings.Contains(f.Reason, unix.EINVAL.Error()) {
					t.Errorf("round %d: feature %+v, want it on with %q", round, f, c.reason)
				}
			}
			checkTakes(t, receiver, sender, 1, c.left)
			checkTakes(t, receiver, sender, 2, maxSegments)
			if got := sender.queues[0].MaxSegments(); got != c.segments {
				t.Errorf("MaxSegments = %d, want %d, which other source ports take", got, c.segments)
			}
		})
	}
}

// checkTakes sends a run from a source port and sees in how many pieces it arrives.
func checkTakes(t *testing.T, receiver, sender *Conn, port uint8, segments int) {
	t.Helper()
	all := datagrams(max(segments, 2), 100, 100)
	send(t, sender, run(boundTo(t, receiver.queues[0].listener), port, all...))
	got, joined := receive(t, receiver, len(all), 8, 1<<16)
	checkPayloads(t, got, all...)
	if joined[0] != segments {
		t.Errorf("source port %d: a run of %d arrived as %v", port, len(all), joined)
	}
}

// When every source port has given up, the feature is off and nobody makes runs any more.
func TestAllPortsRefuse(t *testing.T) {
	var log logbook
	receiver := open(t, "auto", nil)
	sender := open(t, "auto", func(cfg *Config) { *cfg = config(t, "auto", &log) })
	to := boundTo(t, receiver.queues[0].listener)
	for port, s := range sender.senders {
		setInt(t, s.socket, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		all := datagrams(10, 100, 50)
		send(t, sender, run(to, uint8(port), all...))
		got, _ := receive(t, receiver, len(all), 8, 1000)
		checkPayloads(t, got, all...)
		log.check(t, "udp-gso", port+1)
	}
	if f := sender.gsoFeature(); f.On || !strings.Contains(f.Reason, "off for 16") {
		t.Errorf("feature %+v, want it off", f)
	}
	if n := sender.queues[0].MaxSegments(); n != 1 {
		t.Errorf("MaxSegments = %d", n)
	}
}

// UDP-Lite is the one way to EIO that needs no particular hardware, kernel or IPsec.
func TestEIO(t *testing.T) {
	udpLite := func() *socket {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDPLITE)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback.As4()}); err != nil {
			t.Fatal(err)
		}
		s, err := waiterSocket(fd)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	var log logbook
	receiver := open(t, "-udp-gro", nil)
	sender := open(t, "auto", func(cfg *Config) { *cfg = config(t, "auto", &log) })
	replace := func(s **socket, by *socket) {
		if err := (*s).Close(); err != nil {
			t.Fatal(err)
		}
		*s = by
	}
	replace(&receiver.queues[0].listener, udpLite())
	receiver.queues[0].receiver = newMmsgReceiver(receiver.queues[0].listener, false)
	for i := range sender.senders {
		replace(&sender.senders[i].socket, udpLite())
		sender.queues[0].out.ways[i].packet = ipv4.NewPacketConn(sender.senders[i].socket)
	}
	sender.queues[0].out = sendState{}
	sender.queues[0].out.init(sender.senders, true, false)
	to := boundTo(t, receiver.queues[0].listener)
	all := datagrams(20, 100, 50)
	for range 2 {
		send(t, sender, run(to, 1, []byte("first")), run(to, 1, all...), run(to, 1, []byte("last")))
		got, _ := receive(t, receiver, 22, 8, 1000)
		checkPayloads(t, got, slices.Concat([][]byte{[]byte("first")}, all, [][]byte{[]byte("last")})...)
		log.check(t, "udp-gso", 1)
		if f := sender.gsoFeature(); !f.On || !strings.Contains(f.Reason, "off for 1 and limited for 0") || !strings.Contains(f.Reason, unix.EIO.Error()) {
			t.Errorf("feature %+v", f)
		}
	}
	if sender.senders[1].takes(2, 100, to.Addr()) || !sender.senders[2].takes(maxSegments, 1400, to.Addr()) {
		t.Error("not just source port 1 is affected")
	}
}

// Datagrams longer than the way's MTU are fragmented as single ones, and refused in a run.
func TestLongerThanTheMTU(t *testing.T) {
	l := newLink(t)
	var log logbook
	sender, receiver := l.pair(t, "auto", "-udp-gro", &log)
	to := netip.AddrPortFrom(farAddr, 8472)
	const fits = 1500 - 28
	carry := func(size int) {
		t.Helper()
		all := datagrams(9, size, 20)
		send(t, sender, run(to, 1, []byte("first")), run(to, 1, all...), run(to, 1, []byte("last")))
		got, _ := receive(t, receiver, 11, 8, 1<<16)
		checkPayloads(t, got, slices.Concat([][]byte{[]byte("first")}, all, [][]byte{[]byte("last")})...)
	}
	limited := func(is bool) {
		t.Helper()
		if got := sender.senders[1].takes(2, fits+1, to.Addr()); got == is {
			t.Errorf("%d bytes go out in a run: %v", fits+1, got)
		}
		if !sender.senders[1].takes(maxSegments, fits, to.Addr()) || !sender.senders[2].takes(maxSegments, 9000, to.Addr()) ||
			!sender.senders[1].takes(maxSegments, 9000, to.Addr().Next()) {
			t.Error("more than the longest datagrams to one destination from one source port is affected")
		}
		f := sender.gsoFeature()
		if said := strings.Contains(f.Reason, "limited for 1 of 16"); !f.On || said != is {
			t.Errorf("feature %+v", f)
		}
	}
	carry(fits)
	log.check(t, "udp-gso", 0)
	limited(false)
	for range 2 {
		carry(fits + 1)
		log.check(t, "udp-gso", 1)
		limited(true)
	}
	carry(fits)
	carry(fits + 2000)
	log.check(t, "udp-gso", 1)
	limited(true)

	l.setMTU(t, 9000)
	sender.PathMTUChanged()
	limited(false)
	carry(fits + 1)
	carry(8000)
	log.check(t, "udp-gso", 1)
	limited(false)
}

// Every length above the MTU is met once for each source port, the longest first, and told once.
func TestManyLengthsAboveTheMTU(t *testing.T) {
	l := newLink(t)
	var log logbook
	sender, receiver := l.pair(t, "auto", "-udp-gro", &log)
	for size := 2400; size > 1472; size -= 100 {
		all := datagrams(3, size, size)
		send(t, sender, run(netip.AddrPortFrom(farAddr, 8472), 1, all...))
		got, _ := receive(t, receiver, 3, 8, 1<<16)
		checkPayloads(t, got, all...)
	}
	log.check(t, "udp-gso", 1)
}

// What a firewall rejects fails, in a run as alone, and the rest goes on.
func TestFirewall(t *testing.T) {
	l := newLink(t)
	var log logbook
	sender, receiver := l.pair(t, "auto", "auto", &log)
	l.near.Sh(t, `
		nft add table ip t
		nft add chain ip t out '{ type filter hook output priority 0; }'
		nft add rule ip t out udp dport 9999 drop`)
	to, rejected := netip.AddrPortFrom(farAddr, 8472), netip.AddrPortFrom(farAddr, 9999)
	ms := []tunnel.Message{run(to, 1, []byte("first")), run(rejected, 1, datagrams(10, 100, 100)...), run(rejected, 1, []byte("no")), run(to, 1, datagrams(5, 100, 100)...)}
	if err := sender.queues[0].Send(ms); err != nil {
		t.Fatal(err)
	}
	for i, failed := range []int{0, 10, 1, 0} {
		if ms[i].Failed != failed || (failed > 0) != errors.Is(ms[i].Err, unix.EPERM) || failed > 0 && !strings.Contains(ms[i].Err.Error(), "firewall") {
			t.Errorf("message %d: %d failed: %v", i, ms[i].Failed, ms[i].Err)
		}
	}
	got, _ := receive(t, receiver, 6, 8, 1<<16)
	checkPayloads(t, got, slices.Concat([][]byte{[]byte("first")}, datagrams(5, 100, 100))...)
	log.check(t, "none", 0)
}
