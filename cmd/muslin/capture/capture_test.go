package capture

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/net/bpf"

	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
	"muslin/tunnel/host"
	"muslin/tunnel/racetest"
)

var (
	pod, far   = "10.1.0.5", "10.2.0.5"
	us, them   = netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:8472")
	us6, them6 = netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::2]:8472")
	peer       = &fib.Peer{Subnet: netip.MustParsePrefix("10.2.0.0/24"), PublicIP: them.Addr()}
	when       = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
)

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

func tcpPacket(t testing.TB, src, dst string, port uint16, edit func(*layers.TCP), payload int) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(port), DstPort: 80, ACK: true}
	if dst == pod {
		tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
	}
	if edit != nil {
		edit(tcp)
	}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return serialize(t, ip, tcp, gopacket.Payload(bytes.Repeat([]byte{7}, payload)))
}

func vxlan(b []byte) []byte {
	return append([]byte{8, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, b...)
}

func inner(b []byte, inbound bool) *tunnel.Seen {
	return &tunnel.Seen{At: when, Point: tunnel.PointInner, Inbound: inbound, Bufs: [][]byte{b}, Len: len(b), Segments: 1, Peer: peer}
}

func outer(b []byte, inbound bool) *tunnel.Seen {
	s := &tunnel.Seen{At: when, Point: tunnel.PointOuter, Inbound: inbound, Outer: true, Bufs: [][]byte{b[:min(30, len(b))], b[min(30, len(b)):]}, Len: len(b), Segments: 1, Src: us, Dst: them, ECN: 2}
	if inbound {
		s.Src, s.Dst = them, us
	}
	return s
}

func dropped(s *tunnel.Seen, r tunnel.Reason) *tunnel.Seen {
	s.Point, s.Reason, s.Peer = tunnel.PointDrop, r, nil
	return s
}

// frames has a tap of what is wanted see packets, and returns what a reader gets.
func frames(t *testing.T, w Wanted, seen ...*tunnel.Seen) (all []Record) {
	t.Helper()
	if w.Snap == 0 {
		w.Snap = maxSnap
	}
	tap, err := newTap(w, 22)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seen {
		tap.Observe(s)
	}
	b, counts := tap.take(nil)
	if counts.Lost != 0 {
		t.Errorf("%d lost", counts.Lost)
	}
	r := newReader(bytes.NewReader(b))
	for {
		kind, body, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		var p Record
		if err == nil {
			err = parsePacket(slices.Clone(body), &p)
		}
		if err != nil || kind != kindPacket {
			t.Fatalf("a frame of kind %d: %v", kind, err)
		}
		all = append(all, p)
	}
	if len(all) != int(counts.Captured) {
		t.Errorf("%d packets in the stream, %d are counted", len(all), counts.Captured)
	}
	return all
}

// A packet is the same at the other end of the stream.
func TestStream(t *testing.T) {
	p := tcpPacket(t, pod, far, 1234, nil, 100)
	super := inner(p, false)
	super.Segments, super.Info = 3, gso.Info{Kind: gso.TCPv4, Size: 40}
	got := frames(t, Wanted{Snap: 60}, super, outer(vxlan(p), true), dropped(inner(p, false), tunnel.DropNoRoute))
	want := []Record{
		{At: when, Point: tunnel.PointInner, Segments: 3, Size: 40, Peer: them.Addr(), Length: len(p), Data: p[:60]},
		{At: when, Point: tunnel.PointOuter, Inbound: true, Outer: true, Segments: 1, Src: them, Dst: us, ECN: 2, Length: len(p) + 22, Data: vxlan(p)[:60]},
		{At: when, Point: tunnel.PointDrop, Reason: "no-route", Segments: 1, Length: len(p), Data: p[:60]},
	}
	for i := range got {
		got[i].At = got[i].At.UTC()
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Who names a peer gets its packets only, by whatever is known of them; a filter is asked about the right bytes.
func TestWants(t *testing.T) {
	out, in := tcpPacket(t, pod, far, 1234, nil, 0), tcpPacket(t, far, pod, 1234, nil, 0)
	other := tcpPacket(t, "10.3.0.5", pod, 1234, nil, 0)
	ofPeer := Wanted{Subnets: []netip.Prefix{peer.Subnet}, Hosts: []netip.Addr{peer.PublicIP}}
	stranger := outer(vxlan(in), true)
	stranger.Src = netip.MustParseAddrPort("192.0.2.9:1")
	fromOther := inner(other, true)
	fromOther.Peer = nil
	unknown := inner(in, true)
	unknown.Peer = nil
	filtered := func(f string) Wanted { return Wanted{Filter: f} }
	for i, c := range []struct {
		w    Wanted
		s    *tunnel.Seen
		want bool
	}{
		{ofPeer, inner(out, false), true}, {ofPeer, unknown, true}, {ofPeer, fromOther, false}, {ofPeer, outer(vxlan(out), false), true},
		{ofPeer, outer(vxlan(in), true), true}, {ofPeer, stranger, false}, {ofPeer, dropped(outer(vxlan(in), true), tunnel.DropVNI), true},
		{filtered("tcp port 80"), inner(out, false), true}, {filtered("udp"), inner(out, false), false},
		{filtered("udp port 8472"), outer(vxlan(out), false), true}, {filtered("tcp"), outer(vxlan(out), false), false},
		{filtered("vxlan 1 and tcp port 80"), outer(vxlan(out), false), true}, {filtered("vxlan 2"), outer(vxlan(out), false), false},
		{filtered("len = 90"), outer(vxlan(out), false), true}, {filtered("src host 192.0.2.2 and inbound"), outer(vxlan(in), true), true},
		{filtered("tcp port 80"), dropped(outer(vxlan(in), true), tunnel.DropInnerSource), true},
		{filtered("host 192.0.2.2"), dropped(outer(vxlan(in), true), tunnel.DropInnerSource), true},
		{filtered("udp port 53"), dropped(outer(vxlan(in), true), tunnel.DropInnerSource), false},
		{filtered("host 10.2.0.5"), dropped(inner(out, false), tunnel.DropNoRoute), true},
		{filtered("host 10.2.0.5"), dropped(outer(vxlan(nil)[:22:22], true), tunnel.DropShort), false},
	} {
		if got := len(frames(t, c.w, c.s)) == 1; got != c.want {
			t.Errorf("case %d: %v, want %v", i, got, c.want)
		}
	}
}

// A reader that does not read loses copies; the counts say so.
func TestSlow(t *testing.T) {
	tap, err := newTap(Wanted{Snap: maxSnap, Points: tunnel.PointInner}, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := inner(make([]byte, 60000), false)
	n := 0
	for ; n < 10*bufferBytes/60000; n++ {
		tap.Observe(s)
	}
	_, c := tap.take(nil)
	if c.Captured == 0 || c.Lost == 0 || c.Captured+c.Lost != uint64(n) || c.Captured > bufferBytes/60000 {
		t.Errorf("of %d packets %+v", n, c)
	}
}

// A copy allocates nothing.
func TestNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("a pool forgets on purpose under the race detector")
	}
	p := tcpPacket(t, pod, far, 1234, nil, 1000)
	for _, w := range []Wanted{{Filter: "tcp port 80", Snap: 100}, {Filter: "vxlan and tcp", Snap: 100}, {Flows: true, Interval: time.Minute}} {
		tap, err := newTap(w, 22)
		if err != nil {
			t.Fatal(err)
		}
		in, out := inner(p, false), outer(vxlan(p), false)
		tap.Observe(in)
		if n := testing.AllocsPerRun(1000, func() { tap.Observe(in); tap.Observe(out) }); n >= 1 { // a pool is emptied now and then
			t.Errorf("%+v: %v allocations", w, n)
		}
	}
}

// observable is a VTEP that tells what comes out of a channel.
type observable struct {
	observer chan tunnel.Observer
	points   tunnel.Points
	stopped  chan struct{}
}

func (o *observable) Observe(t tunnel.Observer, at tunnel.Points) func() {
	o.points = at
	o.observer <- t
	return func() { close(o.stopped) }
}

// Serve streams until the client's end is closed, then tells what is left and the counts.
func TestServe(t *testing.T) {
	o := &observable{observer: make(chan tunnel.Observer, 1), stopped: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { Serve(w, r, 22, o) }))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := Wanted{Points: tunnel.PointInner | tunnel.PointDrop, Filter: "tcp", Snap: 100}
	req, _ := http.NewRequest(http.MethodGet, "http://x"+Path+"?"+w.Query().Encode(), nil)
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	tap := <-o.observer
	if o.points != w.Points {
		t.Errorf("observes %v, want %v", o.points, w.Points)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	tap.Observe(inner(tcpPacket(t, pod, far, 1, nil, 0), false))
	tap.Observe(inner(tcpPacket(t, pod, far, 2, nil, 0), false))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	packets, counted := 0, Counts{}
	for r := newReader(resp.Body); ; {
		kind, body, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case kindPacket:
			packets++
		case kindCounts:
			if counted, err = parseCounts(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if packets != 2 || counted != (Counts{Captured: 2}) {
		t.Errorf("%d packets, %+v counted", packets, counted)
	}
	<-o.stopped

	for _, q := range []string{"point=x", "point=inner&filter=(", "point=inner&snaplen=1", "point=inner&subnet=1", "point=inner&host=1", "point=inner&flows=1ms"} {
		rec := httptest.NewRecorder()
		Serve(rec, httptest.NewRequest(http.MethodGet, Path+"?"+q, nil), 22, o)
		if rec.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", q, rec.Code)
		}
	}
}

func TestWantedQuery(t *testing.T) {
	for _, w := range []Wanted{
		{Points: tunnel.PointInner, Snap: maxSnap},
		{Points: tunnel.PointInner | tunnel.PointDrop, Filter: "tcp & x", Snap: 96, Subnets: []netip.Prefix{peer.Subnet}, Hosts: []netip.Addr{us6.Addr()}, Flows: true, Interval: time.Minute},
	} {
		w.Filter = strings.ReplaceAll(w.Filter, "& x", "and port 80")
		q, err := url.ParseQuery(w.Query().Encode())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseWanted(q); err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("got %+v, %v; want %+v", got, err, w)
		}
	}
}

// The headers that are made up are right to gopacket, checksums and all, over IPv4 and IPv6.
func TestHeaders(t *testing.T) {
	payload := vxlan(tcpPacket(t, pod, far, 1234, nil, 33))
	for _, r := range []Record{
		{Outer: true, Src: us, Dst: them, ECN: 1, Length: len(payload), Data: payload},
		{Outer: true, Src: us6, Dst: them6, ECN: 3, Length: len(payload), Data: payload},
		{Outer: true, Inbound: true, Src: them6, Dst: us6, Length: len(payload), Data: payload},
		{Outer: true, Src: us6, Dst: them6, Length: len(payload) + 1, Data: append(slices.Clone(payload), 1)},
	} {
		b, length := r.packet(nil)
		if length != len(b) {
			t.Errorf("length %d of %d bytes", length, len(b))
		}
		kind := gopacket.LayerType(layers.LayerTypeIPv4)
		if r.Src.Addr().Is6() {
			kind = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(b, kind, gopacket.Default)
		ip, udp := p.NetworkLayer(), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if p.ErrorLayer() != nil || int(udp.Length) != 8+len(r.Data) || uint16(udp.SrcPort) != r.Src.Port() || uint16(udp.DstPort) != r.Dst.Port() {
			t.Errorf("%v", p)
		}
		sum := udp.Checksum
		_ = udp.SetNetworkLayerForChecksum(ip)
		again := serialize(t, ip.(gopacket.SerializableLayer), udp, gopacket.Payload(udp.Payload))
		if !bytes.Equal(again, b) || sum == 0 {
			t.Errorf("%x, to gopacket %x", b, again)
		}
	}
	// What came over IPv4 may have had no checksum, and what is cut short cannot have one.
	for _, r := range []Record{{Outer: true, Inbound: true, Src: them, Dst: us, Length: 10, Data: payload[:10]}, {Outer: true, Src: us, Dst: them, Length: 11, Data: payload[:10]}} {
		if b, length := r.packet(nil); b[26] != 0 || b[27] != 0 || length != 28+r.Length {
			t.Errorf("%x of %d bytes", b, length)
		}
	}
	// An address that is not known.
	r := Record{Outer: true, Src: us6, Length: 10, Data: payload[:10]}
	if b, _ := r.packet(nil); len(b) != 58 || b[0]>>4 != 6 {
		t.Errorf("%x", b)
	}
}

// What is written, pcapgo reads, and tshark its comments.
func TestPcapng(t *testing.T) {
	p := tcpPacket(t, pod, far, 1234, nil, 33)
	file := filepath.Join(t.TempDir(), "x.pcapng")
	s, err := newPcapngSink(&files{name: file}, &about{Version: "1", Device: "muslin0", Filter: "tcp", Snap: 100, Points: tunnel.PointInner | tunnel.PointDrop})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		r := Record{At: when.Add(time.Duration(i)), Point: tunnel.PointInner, Inbound: i%2 == 1, Segments: 1 + i, Size: 20, Length: len(p), Data: p[:len(p)-i]}
		if i == 3 {
			r.Point, r.Reason = tunnel.PointDrop, "no-route"
		}
		if err := s.packet(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(Counts{Captured: 4, Lost: 5}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, _ := f.Stat(); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: others can read what people send", info.Mode())
	}
	ng, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		b, ci, err := ng.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, p[:len(p)-i]) || ci.Length != len(p) || !ci.Timestamp.Equal(when.Add(time.Duration(i))) || ci.InterfaceIndex != i/3 {
			t.Errorf("packet %d: %+v, %x", i, ci, b)
		}
	}
	if _, _, err := ng.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if face, _ := ng.Interface(1); face.Name != "drops" || face.Description != "muslin0" || face.Statistics.PacketsDropped == 5 {
		t.Errorf("interface %+v", face)
	}
	out, err := exec.Command("tshark", "-r", file, "-T", "fields", "-e", "frame.comment").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "\nsuperpacket: 2 packets of 20 bytes of payload, cut afterwards\nsuperpacket: 3 packets of 20 bytes of payload, cut afterwards\n" +
		"dropped: no-route: " + tunnel.DropNoRoute.Explain() + "; superpacket: 4 packets of 20 bytes of payload, cut afterwards\n"
	if string(out) != want {
		t.Errorf("comments %q, want %q", out, want)
	}
}

// A ring goes round, begins behind its newest file, and each file is whole.
func TestRing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "ring")
	record := func(n int) {
		t.Helper()
		s, err := newPcapngSink(&files{name: name, ring: 3, size: 3000}, &about{Points: tunnel.PointInner, Snap: maxSnap})
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			if err := s.packet(&Record{At: when, Point: tunnel.PointInner, Segments: 1, Length: 1000, Data: make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.close(Counts{}); err != nil {
			t.Fatal(err)
		}
	}
	count := func(i int) int {
		t.Helper()
		f, err := os.Open((&files{name: name, ring: 3}).nameOf(i))
		if err != nil {
			return -1
		}
		defer f.Close()
		if info, _ := f.Stat(); info.Size() > 3500 {
			t.Errorf("file %d has %d bytes", i, info.Size())
		}
		ng, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; ; n++ {
			if _, _, err := ng.ReadPacketData(); errors.Is(err, io.EOF) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	record(3)
	if a, b, c := count(0), count(1), count(2); a != 2 || b != 1 || c != -1 {
		t.Errorf("%d, %d, %d packets", a, b, c)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(name+"0", old, old); err != nil {
		t.Fatal(err)
	}
	record(5) // into 2, 0, 1
	if a, b, c := count(0), count(1), count(2); a != 2 || b != 1 || c != 2 {
		t.Errorf("then %d, %d, %d packets", a, b, c)
	}
}

func TestFilesRefused(t *testing.T) {
	for want, f := range map[string]files{
		"2 to 10000": {name: "x", ring: 1, size: 1}, "name the files": {name: "-", ring: 2, size: 1}, "--ring-size": {name: "x", ring: 2}, "--ring-files": {name: "x", size: 5},
	} {
		if err := f.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", f, err, want)
		}
	}
}

func flowsOf(t *testing.T, tell []toldFlow) (all []flowLine) {
	t.Helper()
	for i := range tell {
		var l flowLine
		if err := json.Unmarshal(tell[i].appendJSON(nil), &l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// A connection is one flow of both directions, told at intervals, and when TCP ends it.
func TestFlows(t *testing.T) {
	table := newFlowTable(10 * time.Second)
	syn := func(tcp *layers.TCP) { tcp.SYN = true }
	fin := func(tcp *layers.TCP) { tcp.FIN = true }
	at := when
	see := func(b []byte, inbound bool, segments int) {
		at = at.Add(time.Second)
		s := inner(b, inbound)
		s.At, s.Segments = at, segments
		table.seen(s, b, len(b))
	}
	see(tcpPacket(t, pod, far, 1234, syn, 0), false, 1)
	see(tcpPacket(t, far, pod, 1234, syn, 0), true, 1)
	see(tcpPacket(t, pod, far, 1234, nil, 960), false, 4)
	s := dropped(inner(tcpPacket(t, pod, far, 1234, nil, 960), false), tunnel.DropTooBig)
	s.At = at
	table.seen(s, s.Bufs[0], s.Len)
	if told, _ := table.sweep(at, false); len(told) != 0 {
		t.Errorf("too early: %+v", told)
	}
	told, _ := table.sweep(when.Add(20*time.Second), false)
	want := flowLine{
		Start: when.Add(time.Second), End: when.Add(3 * time.Second), Why: "active", Direction: "out", Protocol: "tcp", Src: netip.MustParseAddr(pod), SrcPort: 1234,
		Dst: netip.MustParseAddr(far), DstPort: 80, Peer: them.Addr().String(), Packets: 6, Bytes: 40 + 1000 + 1000, ReplyPackets: 1, ReplyBytes: 40, Flags: "S.", ReplyFlags: "S.",
		Drops: map[string]uint64{"too-big": 1},
	}
	if got := flowsOf(t, told); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	see(tcpPacket(t, pod, far, 1234, fin, 0), false, 1)
	see(tcpPacket(t, far, pod, 1234, fin, 0), true, 1)
	if told, _ := table.sweep(at.Add(time.Second), false); len(told) != 0 {
		t.Errorf("at once: %+v", flowsOf(t, told))
	}
	told, _ = table.sweep(at.Add(lingerTCP), false)
	if got := flowsOf(t, told); len(got) != 1 || got[0].Why != "closed" || got[0].Packets != 7 || got[0].ReplyPackets != 2 || got[0].Flags != "FS." {
		t.Errorf("closed: %+v", got)
	}
	if told, _ := table.sweep(at.Add(time.Hour), true); len(told) != 0 {
		t.Errorf("told twice: %+v", flowsOf(t, told))
	}
	// Who began is who sent first.
	see(tcpPacket(t, far, pod, 99, syn, 0), true, 1)
	see(tcpPacket(t, pod, far, 99, syn, 0), false, 1)
	told, _ = table.sweep(at.Add(idleTCP), false)
	if got := flowsOf(t, told); len(got) != 1 || got[0].Why != "idle" || got[0].Direction != "in" || got[0].Src.String() != far || got[0].ReplyPackets != 1 {
		t.Errorf("of the far end: %+v", got)
	}
	table.add(at, false, []byte{0x45, 1}, 2, 1, netip.Addr{}, "")
	see(tcpPacket(t, pod, far, 7, nil, 0), false, 1)
	told, _ = table.sweep(at, true)
	if got := flowsOf(t, told); len(got) != 1 || got[0].Why != "stopped" {
		t.Errorf("at the end: %+v", got)
	}
}

// There are never more flows than a fixed number: who was quiet for longest is told of and makes room.
func TestFlowsBounded(t *testing.T) {
	table := newFlowTable(time.Hour)
	p := tcpPacket(t, pod, far, 1, nil, 0)
	const n = maxFlows + maxFlows/2
	for i := range n {
		p[20], p[21], p[19] = byte(i>>8), byte(i), byte(i>>16)
		table.add(when.Add(time.Duration(i)), false, p, len(p), 1, netip.Addr{}, "")
	}
	held := 0
	for i := range table.shards {
		held += len(table.shards[i].flows)
	}
	told, lost := table.sweep(when, false)
	if held > maxFlows || len(told) == 0 || lost == 0 || held+len(told)+int(lost) != n || told[0].why != flowEvicted {
		t.Errorf("%d held, %d told, %d lost, of %d", held, len(told), lost, n)
	}
	// The list is sound: all that is held can be taken out, the quietest first in each part.
	for i := range table.shards {
		last, k := time.Time{}, 0
		for f := table.shards[i].first; f != nil; f = f.newer {
			if f.end.Before(last) {
				t.Fatal("the list is out of order")
			}
			last, k = f.end, k+1
		}
		if k != len(table.shards[i].flows) {
			t.Errorf("%d in the list, %d in the map", k, len(table.shards[i].flows))
		}
	}
	if told, _ = table.sweep(when, true); len(told) != held {
		t.Errorf("%d told at the end, of %d", len(told), held)
	}
}

// A line says what a person wants to know.
func TestText(t *testing.T) {
	p := printer{framing: vxlanFraming}
	tcp := tcpPacket(t, pod, far, 1234, func(tcp *layers.TCP) { tcp.SYN, tcp.ACK, tcp.Seq = true, false, 77 }, 0)
	echo := serialize(t, &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: net.ParseIP(pod), DstIP: net.ParseIP(far)},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 3, Seq: 4})
	for want, r := range map[string]Record{
		"03:04:05.678901 out 10.1.0.5.1234 > 10.2.0.5.80: tcp S seq 77, length 40 [peer 192.0.2.2]": {Peer: them.Addr(), Point: tunnel.PointInner, Data: tcp, Length: len(tcp)},
		"03:04:05.678901 in  10.1.0.5 > 10.2.0.5: icmp echo request, id 3, seq 4, length 28":        {Inbound: true, Point: tunnel.PointInner, Data: echo, Length: len(echo)},
		"03:04:05.678901 out 192.0.2.1.40000 > 192.0.2.2.8472: vxlan 1: 10.1.0.5 > 10.2.0.5: icmp echo request, id 3, seq 4, length 28": {
			Outer: true, Src: us, Dst: them, Point: tunnel.PointOuter, Data: vxlan(echo), Length: len(echo) + 22},
		"03:04:05.678901 out 10.1.0.5.1234 > 10.2.0.5.80: tcp S seq 77, length 40 [superpacket of 3] DROPPED no-route: " + tunnel.DropNoRoute.Explain(): {
			Point: tunnel.PointDrop, Reason: "no-route", Segments: 3, Data: tcp, Length: len(tcp)},
		"03:04:05.678901 in  no IP packet, 3 bytes": {Inbound: true, Point: tunnel.PointInner, Data: []byte{1, 2, 3}, Length: 3},
	} {
		r.At = when
		if got := string(p.format(nil, &r)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	unreachable := serialize(t, &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: net.ParseIP("10.1.0.1"), DstIP: net.ParseIP(pod)},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(tcp[:28]))
	for want, c := range map[string]struct {
		framing framing
		payload []byte
	}{
		"udp: 10.1.0.5.1234 > 10.2.0.5.80: tcp S seq 77, length 40":                             {udpFraming, tcp},
		"udp: 10.1.0.1 > 10.1.0.5: icmp host unreachable (about tcp to 10.2.0.5.80), length 56": {udpFraming, unreachable},
		"udp, length 31": {udpFraming, []byte{9, 9, 9}},
		"wireguard handshake initiation, length 148": {wireGuard, append([]byte{1, 0, 0, 0}, make([]byte, 144)...)},
		"wireguard data, length 32":                  {wireGuard, append([]byte{4, 0, 0, 0}, make([]byte, 28)...)},
		"udp, length 32":                             {wireGuard, []byte{7, 0, 0, 0}},
	} {
		r := Record{At: when, Outer: true, Src: us, Dst: them, Point: tunnel.PointOuter, Data: c.payload, Length: len(c.payload)}
		if got := string((&printer{framing: c.framing}).format(nil, &r)); got != "03:04:05.678901 out 192.0.2.1.40000 > 192.0.2.2.8472: "+want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// What the kernel is asked for is what the overlay's packets are, by the word of netip.
func TestInNetworks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, texts := range [][]string{{"10.244.0.0/16"}, {"10.128.0.0/9", "fd00:244::/48"}, {"fd00:244:0:4000::/50"}, {"10.1.2.3/32", "fd00::7/128"}, {"0.0.0.0/0", "::/0"}} {
		var networks []netip.Prefix
		for _, text := range texts {
			networks = append(networks, netip.MustParsePrefix(text))
		}
		vm, err := bpf.NewVM(inNetworks(networks, 9))
		if err != nil {
			t.Fatal(texts, err)
		}
		address := func(six bool) netip.Addr {
			a := networks[random.IntN(len(networks))].Addr()
			if a.Is6() != six {
				a = netip.MustParseAddr("192.0.2.1")
				if six {
					a = netip.MustParseAddr("2001:db8::1")
				}
			}
			b := a.AsSlice() // with a bit that is another one, or with none
			if bit := random.IntN(8 * len(b) * 2); bit < 8*len(b) {
				b[bit/8] ^= 1 << (bit % 8)
			}
			a, _ = netip.AddrFromSlice(b)
			return a
		}
		for range 2000 {
			six := random.IntN(2) == 1
			src, dst := address(six), address(six)
			p := append(append(append(make([]byte, 12), src.AsSlice()...), dst.AsSlice()...), 0)
			p[0] = 0x45
			if six {
				p = append(p[4:], 0, 0, 0, 0)
				p[0] = 0x60
			}
			want := 0
			if slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(src) || n.Contains(dst) }) {
				want = 9
			}
			if got, err := vm.Run(p); err != nil || got != want {
				t.Fatalf("%v: %v to %v: %d, %v, want %d", texts, src, dst, got, err, want)
			}
		}
	}
}

// UDP sockets are read with their addresses, and those belong to interfaces.
func TestSockets(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 77, 0, 9)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if all := host.UDPSockets(); !slices.ContainsFunc(all, func(u host.UDPSocket) bool {
		return u.Local == netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
	}) {
		t.Errorf("%v is not among %v", want, all)
	}
	if name := interfaceOf(netip.MustParseAddr("127.0.0.1")); name != "lo" {
		t.Errorf("127.0.0.1 is on %q", name)
	}
	if name := interfaceOf(netip.MustParseAddr("192.0.2.77")); name != "" {
		t.Errorf("192.0.2.77 is on %q", name)
	}
}

// Whatever comes over the control socket, or from a device, is read or refused, and what is read can be written.
func FuzzRecord(f *testing.F) {
	tap, err := newTap(Wanted{Snap: maxSnap}, 22)
	if err != nil {
		f.Fatal(err)
	}
	p := tcpPacket(f, pod, far, 1234, nil, 10)
	tap.Observe(inner(p, false))
	tap.Observe(outer(vxlan(p), true))
	tap.Observe(dropped(outer(vxlan(p), true), tunnel.DropVNI))
	b, c := tap.take(nil)
	f.Add(appendFlow(appendCounts(bytes.Clone(b), c), []byte("{}")))
	text := printer{framing: vxlanFraming}
	f.Fuzz(func(t *testing.T, b []byte) {
		ng, err := newPcapng(io.Discard, &about{Points: tunnel.PointInner | tunnel.PointOuter | tunnel.PointDrop})
		if err != nil {
			t.Fatal(err)
		}
		flows := newFlowTable(time.Second)
		for r := newReader(bytes.NewReader(b)); ; {
			kind, body, err := r.next()
			if err != nil {
				return
			}
			var p Record
			if kind != kindPacket || parsePacket(body, &p) != nil {
				continue
			}
			if _, err := ng.write(&p); err != nil {
				t.Fatal(err)
			}
			text.format(nil, &p)
			flows.add(p.At, p.Inbound, p.Data, p.Length, p.Segments, p.Peer, p.Reason)
			told, _ := flows.sweep(p.At, true)
			for i := range told {
				told[i].appendJSON(nil)
			}
		}
	})
}

// What a packet of 1,400 bytes costs a worker while somebody captures.
func BenchmarkTap(b *testing.B) {
	p := tcpPacket(b, pod, far, 1234, nil, 1360)
	for _, c := range []struct {
		name string
		w    Wanted
		s    *tunnel.Seen
	}{
		{"inner, no match", Wanted{Filter: "udp port 9", Snap: maxSnap}, inner(p, false)},
		{"outer, no match", Wanted{Filter: "vxlan and udp port 9", Snap: maxSnap}, outer(vxlan(p), false)},
		{"flow", Wanted{Flows: true, Interval: time.Minute}, inner(p, false)},
		{"128 bytes", Wanted{Snap: 128}, inner(p, false)},
		{"all", Wanted{Snap: maxSnap}, inner(p, false)},
	} {
		b.Run(c.name, func(b *testing.B) {
			tap, err := newTap(c.w, 22)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				tap.Observe(c.s)
				if len(tap.buf)+2000 > cap(tap.buf) { // as if it were read
					tap.buf = tap.buf[:0]
				}
			}
		})
	}
}
