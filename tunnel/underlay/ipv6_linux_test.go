package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
)

// What only IPv6 has. What the families share is tested with both, or with IPv4 alone.

// addresses6 are such as hosts have: counted, by their MAC, random, ::1 in a network each.
func addresses6(rng *rand.Rand, n int) (all []netip.Addr) {
	for i := range n {
		b := netip.MustParseAddr("2001:db8::").As16()
		switch rng.IntN(4) {
		case 0:
			binary.BigEndian.PutUint64(b[8:], uint64(i))
		case 1:
			binary.BigEndian.PutUint64(b[8:], 0x021122fffe000000|uint64(i))
		case 2:
			binary.BigEndian.PutUint64(b[8:], rng.Uint64())
		default:
			binary.BigEndian.PutUint16(b[6:], uint16(i))
			b[15] = 1
		}
		all = append(all, netip.AddrFrom16(b))
	}
	return all
}

// The program makes the same number of an address as number does, and so lets in every peer. Strangers pass that have a
// peer's number, which by chance is rare.
func TestFilterOfIPv6(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	strangers, passed := 0, 0
	for range 40 {
		peers := addresses6(rng, 1+rng.IntN(1500))
		var all []*fib.Peer
		for i, a := range peers {
			all = append(all, &fib.Peer{Subnet: netip.PrefixFrom(address(uint32(i)<<8), 24), PublicIP: a})
		}
		table := fib.New(append(all, &fib.Peer{Subnet: netip.MustParsePrefix("10.255.0.0/24"), PublicIP: nearAddr}))
		s := spansOf(outerAddrs(table, true))
		if four := outerAddrs(table, false); len(four) != 1 {
			t.Fatalf("%d addresses of IPv4", len(four))
		}
		program := filterProgram(s, source{six: true})
		if _, err := bpf.Assemble(program); err != nil || len(program) > maxInstructions {
			t.Fatalf("%d ranges, %d instructions: %v", len(s), len(program), err)
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range append(addresses6(rng, 300), peers...) {
			b := a.As16()
			kept, err := vm.Run(b[:])
			if err != nil {
				t.Fatal(err)
			}
			n, ok := number(a, true)
			if !ok || (kept > 0) != s.contains(n) {
				t.Fatalf("the filter lets %v in: %v, its number is %#x (%v)", a, kept > 0, n, ok)
			}
			if knows := table.KnowsOuter(a); knows && kept == 0 {
				t.Fatalf("the filter refuses the peer %v", a)
			} else if !knows {
				strangers++
				if kept > 0 {
					passed++
				}
			}
		}
	}
	if strangers < 5000 || passed*1000 > strangers {
		t.Errorf("%d of %d strangers pass", passed, strangers)
	}
}

// Hosts that lie side by side make one range.
func TestFilterOfIPv6Ranges(t *testing.T) {
	for name, next := range map[string]func(i uint64) netip.Addr{
		"counted":      func(i uint64) netip.Addr { return plus("2001:db8::", 0, i) },
		"by their MAC": func(i uint64) netip.Addr { return plus("2001:db8::211:22ff:fe00:0", 0, i) },
	} {
		var numbers []uint32
		for i := range uint64(1000) {
			n, _ := number(next(i), true)
			numbers = append(numbers, n)
		}
		if s := spansOf(numbers); len(s) > 2 { // two where the numbers go round
			t.Errorf("%s: %d ranges", name, len(s))
		}
	}
}

// plus adds to both halves of an address.
func plus(base string, upper, lower uint64) netip.Addr {
	b := netip.MustParseAddr(base).As16()
	binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])+upper)
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+lower)
	return netip.AddrFrom16(b)
}

// The kernel lets in what comes from the peers, and counts the rest: at 2001:db8:1::/64, all of which is this host's.
func TestEarlyFilterOfIPv6(t *testing.T) {
	n := newNamespace(t)
	n.Sh(t, `
		ip link set lo up
		sysctl -qw net.ipv6.ip_nonlocal_bind=1
		ip -6 route add local 2001:db8:1::/64 dev lo`)
	rng := rand.New(rand.NewPCG(23, 24))
	host := func(k uint64) netip.Addr { return plus("2001:db8:1::", 0, k) }
	last := host(1)
	c := n.open(t, "auto", func(cfg *Config) { cfg.Local = last })
	for range 4 {
		peers := []netip.Addr{last, nearAddr}
		for range 1 + rng.IntN(300) {
			peers = append(peers, host(2+rng.Uint64N(1000)))
		}
		table := tableOf(peers...)
		c.SetPeers(table, func() {})
		c.filter.narrow()
		var before, after tunnel.Losses
		var got, from []netip.Addr
		for range 100 {
			from = append(from, host(2+rng.Uint64N(1000)))
		}
		n.Do(t, func() error {
			before = c.Losses()
			got = passes(t, c, last, from...)
			after = c.Losses()
			return nil
		})
		want := slices.DeleteFunc(slices.Clone(from), func(a netip.Addr) bool { return !table.KnowsOuter(a) })
		if !slices.Equal(got, want) {
			t.Errorf("through the filter came\n%v, want\n%v", got, want)
		}
		if want := before.Plus(tunnel.Losses{Refused: uint64(len(from) - len(got))}); after != want {
			t.Errorf("losses %+v, want %+v", after, want)
		}
	}
}

// What is longer than the link's MTU goes out in fragments, and none of the two limits on them stands in the way.
func TestFragmentsOfIPv6(t *testing.T) {
	l := newLink6(t)
	for _, features := range []string{"auto", "none"} {
		sender, receiver := l.pairOf(t, true, features, features, nil)
		to := netip.AddrPortFrom(farAddr6, 8472)
		all := datagrams(3, 4000, 4000)
		send(t, sender, run(to, 2, all[0]), run(to, 2, all[1:]...))
		got, _ := receive(t, receiver, 3, 8, 1<<16)
		checkPayloads(t, got, all...)
		sender.Close()
		receiver.Close()
	}
}

// A path with a smaller MTU has runs cut here, down to what every link of IPv6 takes.
func TestRunsAboveThePathMTUOfIPv6(t *testing.T) {
	l := newLink6(t)
	var log logbook
	sender, receiver := l.pairOf(t, true, "auto", "auto", &log)
	l.setMTU(t, 1280)
	to := netip.AddrPortFrom(farAddr6, 8472)
	all := datagrams(20, 1400, 1000)
	for range 2 {
		send(t, sender, run(to, 1, all...))
		got, _ := receive(t, receiver, 20, 8, 1<<16)
		checkPayloads(t, got, all...)
	}
	log.check(t, kernel.UDPGSO, 1)
	if s := sender.senders[1]; s.takes(20, 1400, to.Addr()) || !s.takes(20, 1232, to.Addr()) || !s.takes(20, 1400, to.Addr().Next()) {
		t.Errorf("the path takes runs of 1400 bytes: %v, of 1232: %v", s.takes(20, 1400, to.Addr()), s.takes(20, 1232, to.Addr()))
	}
}

// An underlay of each family on one port, at any address: IPv6's sockets leave IPv4's datagrams alone.
func TestBothFamiliesOnOnePort(t *testing.T) {
	for _, queues := range []int{1, 2} {
		n := newNamespace(t)
		n.Sh(t, "ip link set lo up")
		with := func(local netip.Addr) func(*Config) {
			return func(cfg *Config) { cfg.Local, cfg.Port, cfg.Queues = local, 8472, queues }
		}
		six := n.open(t, "auto", with(netip.IPv6Unspecified()))
		four := n.open(t, "auto", with(netip.IPv4Unspecified()))
		n.Do(t, func() error {
			for _, from := range []netip.Addr{loopback, loopback6} {
				fd := boundSocket(t, from)
				sendPlain(t, fd, netip.AddrPortFrom(from, 8472), []byte(from.String()))
			}
			return nil
		})
		if queues > 1 {
			continue // whichever has it
		}
		for from, c := range map[netip.Addr]*Conn{loopback: four, loopback6: six} {
			got, _ := receive(t, c, 1, 8, 100)
			if got[0].payload != from.String() || got[0].from.Addr() != from {
				t.Errorf("%v has %s", from, summary(got))
			}
		}
	}
}

// A destination of the other family fails alone, whichever the underlay's is.
func TestOtherFamilyFailsAlone(t *testing.T) {
	requireIPv6(t)
	for local, c := range map[netip.Addr]struct {
		other netip.Addr
		want  error
	}{loopback: {farAddr6, unix.EAFNOSUPPORT}, loopback6: {farAddr, unix.ENETUNREACH}} {
		receiver, sender := open(t, "auto", on(local)), open(t, "auto", on(local))
		to := boundTo(t, receiver.queues[0].listener)
		all := datagrams(4, 100, 100)
		ms := []tunnel.Message{run(to, 1, all[0], all[1]), run(netip.AddrPortFrom(c.other, 9), 1, all...), run(to, 1, all[2:]...)}
		for i := range ms {
			ms[i].ECN = 1
		}
		if err := sender.queues[0].Send(ms); err != nil {
			t.Fatal(err)
		}
		for i := range ms {
			if bad := i == 1; (ms[i].Failed > 0) != bad || bad && (ms[i].Failed != 4 || !errors.Is(ms[i].Err, c.want)) {
				t.Errorf("from %v, message %d: %d failed: %v", local, i, ms[i].Failed, ms[i].Err)
			}
		}
		got, _ := receive(t, receiver, 4, 8, 1<<16)
		checkPayloads(t, got, all...)
		if f := sender.ecnFeature(); !f.On {
			t.Errorf("outer ECN went off: %s", f.Reason)
		}
	}
}

// What waits in the sockets goes on with them, and they are no others' than theirs.
func TestAdoptIPv6(t *testing.T) {
	requireIPv6(t)
	old := open(t, "auto", on(loopback6))
	port := boundTo(t, old.queues[0].listener).Port()
	to := netip.AddrPortFrom(loopback6, port)
	if err := old.Pause(); err != nil {
		t.Fatal(err)
	}
	send(t, old, singles(20, 4, to)...)
	s, err := old.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cfg := config(t, "auto", nil)
	cfg.Port, cfg.Adopt = port, s
	if c, err := Open(cfg); err == nil {
		c.Close()
		t.Error("an underlay of IPv4 adopted sockets of IPv6")
	}
	cfg.Local = loopback6
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	befriend(c, loopback6)
	send(t, c, singles(20, 4, to)...)
	got, _ := receive(t, c, 40, 8, 2000)
	for _, r := range got {
		if flow := binary.BigEndian.Uint32([]byte(r.payload)); uint32(r.ecn) != flow {
			t.Errorf("a datagram of flow %d has ECN %d", flow, r.ecn)
		}
	}
}

// A queue of the outgoing interface that is full, counted where IPv6 counts it.
func TestSendOverflowOfIPv6(t *testing.T) {
	l := newLink6(t)
	l.near.Sh(t, slow)
	sender, _ := l.pairOf(t, true, "auto", "auto", nil)
	const messages = 640
	for range messages / tunnel.BatchSize {
		var ms []tunnel.Message
		for range tunnel.BatchSize {
			ms = append(ms, run(netip.AddrPortFrom(farAddr6, 8472), 0, datagrams(1, 1000, 1000)...))
		}
		if err := sender.queues[0].Send(ms); err != nil {
			t.Fatal(err)
		}
	}
	l.near.Do(t, func() error {
		if lost := sender.SendOverflow(); lost < messages*9/10 || lost > messages {
			return fmt.Errorf("%d of %d messages are counted as dropped, want most of them", lost, messages)
		}
		return nil
	})
}

// The options that a datagram's way depends on.
func TestSocketOptionsOfIPv6(t *testing.T) {
	requireIPv6(t)
	c := open(t, "auto", on(loopback6))
	for name, o := range map[string]struct {
		s      *socket
		option int
		want   int
	}{
		"listener, V6ONLY":     {c.queues[0].listener, unix.IPV6_V6ONLY, 1},
		"listener, RECVTCLASS": {c.queues[0].listener, unix.IPV6_RECVTCLASS, 1},
		"sender, V6ONLY":       {c.senders[3].socket, unix.IPV6_V6ONLY, 1},
		"sender, DONTFRAG":     {c.senders[3].socket, unix.IPV6_DONTFRAG, 0},
		"sender, MTU_DISCOVER": {c.senders[3].socket, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
	} {
		if err := o.s.with(func(fd int) error {
			got, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, o.option)
			if err == nil && got != o.want {
				err = fmt.Errorf("%d, want %d", got, o.want)
			}
			return err
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	const udpNoCheck6TX = 101 // UDP_NO_CHECK6_TX in linux/udp.h
	if err := c.senders[3].socket.with(func(fd int) error {
		got, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, udpNoCheck6TX)
		if got != 0 {
			t.Error("datagrams leave without a checksum")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusedIPv6(t *testing.T) {
	requireIPv6(t)
	holder := open(t, "auto", on(loopback6))
	taken := boundTo(t, holder.queues[0].listener)
	for at, want := range map[netip.AddrPort]error{
		{}: nil, // none of the kernel's
		netip.MustParseAddrPort("[::ffff:127.0.0.1]:0"): nil,
		netip.MustParseAddrPort("[2001:db8::1]:0"):      unix.EADDRNOTAVAIL,
		taken: unix.EADDRINUSE,
	} {
		cfg := config(t, "auto", nil)
		cfg.Local, cfg.Port = at.Addr(), at.Port()
		c, err := Open(cfg)
		switch {
		case err == nil:
			c.Close()
			t.Errorf("opened at %v", at)
		case want != nil && (!errors.Is(err, want) || !strings.Contains(err.Error(), at.String())):
			t.Errorf("%v: %v, want %v", at, err, want)
		}
	}
}
