package tun

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// refused is a superpacket that the kernel refuses whole with EINVAL, as broken kernels refused good ones,
// and takes in segments: no packet is as long as its headers are said to be (tun_get_user).
func refused(t testing.TB, s spec, size int) gso.Run {
	r := s.run(t, size)
	r.Info.HeaderLen = maxPacket
	return r
}

// featureOf is what the device says of a feature.
func featureOf(t *testing.T, d device, name string) kernel.Feature {
	t.Helper()
	all := d.Features()
	i := slices.IndexFunc(all, func(f kernel.Feature) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no feature %s in %+v", name, all)
	}
	return all[i]
}

// A refused superpacket is written segment by segment, in its place, and is the last of its kind that the
// queue tries.
func TestRefusedSuperpacket(t *testing.T) {
	for _, c := range []struct {
		name     string
		spec     spec
		size     int
		feature  string
		tcp, udp bool // what is left
		other    spec // of the other kind
	}{
		{"TCP over IPv4", oneTCP(20000), 1448, kernel.TUNTCPGRO, false, true, oneUDP(5000)},
		{"TCP over IPv6", oneTCP(20000).with(func(s *spec) { s.v6 = true }), 1428, kernel.TUNTCPGRO, false, true, oneUDP(5000)},
		{"UDP", oneUDP(20000), 1400, kernel.TUNUDPGRO, true, false, oneTCP(5000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			newDualNamespace(t)
			var log logbook
			d, sink := openUpQueues(t, full, 2, &log), openOther(t, full)
			first, second := d.Queues()[0], d.Queues()[1]
			marker := oneUDP(10).with(func(s *spec) { s.sport = 1 })
			markers := func() gso.Run { return runs(marker.build(t, true))[0] }
			want := slices.Concat([][]byte{marker.forwarded().build(t, true)}, c.spec.forwarded().segments(t, c.size), [][]byte{marker.forwarded().build(t, true)})
			for round := range 3 {
				r := refused(t, c.spec, c.size)
				if n, err := first.Write([]gso.Run{markers(), r, markers()}); n != len(want) || err != nil {
					t.Fatalf("Write = %d, %v, want %d", n, err, len(want))
				}
				got, whole := readSegments(t, full, sink, len(want))
				samePackets(t, "forwarded", got, want)
				if whole != 0 {
					t.Errorf("%d superpackets", whole)
				}
				if tcp, udp := first.Joins(); tcp != c.tcp || udp != c.udp {
					t.Errorf("round %d: Joins of the queue = %v, %v, want %v, %v", round, tcp, udp, c.tcp, c.udp)
				}
				if tcp, udp := second.Joins(); !tcp || !udp {
					t.Errorf("round %d: Joins of the other queue = %v, %v", round, tcp, udp)
				}
				if f := featureOf(t, d, c.feature); f.On || !strings.Contains(f.Reason, "refused") || !strings.Contains(f.Reason, unix.EINVAL.Error()) {
					t.Errorf("round %d: feature %+v", round, f)
				}
				log.check(t, c.feature)
			}
			// From now on the queue cuts good ones as well; the other queue and the other kind go on.
			for _, w := range []struct {
				queue int
				spec  spec
				whole int
			}{{0, c.spec, 0}, {1, c.spec, 1}, {0, c.other, 1}, {1, c.other, 1}} {
				segments := w.spec.forwarded().segments(t, 1000)
				if n, err := d.Queues()[w.queue].Write([]gso.Run{w.spec.run(t, 1000)}); n != len(segments) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				got, whole := readSegments(t, full, sink, len(segments))
				samePackets(t, "forwarded", got, segments)
				if whole != w.whole {
					t.Errorf("queue %d: %d superpackets, want %d", w.queue, whole, w.whole)
				}
			}
			for _, f := range []string{kernel.TUNTCPGRO, kernel.TUNUDPGRO} {
				if on := featureOf(t, d, f).On; on != (f != c.feature) {
					t.Errorf("feature %s is on: %v", f, on)
				}
			}
			log.check(t, c.feature)
		})
	}
}

// Both queues may meet it; each says so.
func TestRefusedOnEachQueue(t *testing.T) {
	newNamespace(t)
	var log logbook
	d, sink := openUpQueues(t, full, 2, &log), openOther(t, plain)
	s := oneTCP(5000)
	for _, q := range d.Queues() {
		for range 2 {
			if n, err := q.Write([]gso.Run{refused(t, s, 1000)}); n != 5 || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
			got, _ := newReading(plain, 64, none).read(t, sink, 5)
			samePackets(t, "forwarded", got, s.forwarded().segments(t, 1000))
		}
	}
	log.check(t, kernel.TUNTCPGRO, kernel.TUNTCPGRO)
}
