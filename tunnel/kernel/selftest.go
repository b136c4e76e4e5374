//go:build linux

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

// The self-test: packets that the kernel is to cut, join or pass on go through a circuit, and what comes out
// is compared byte for byte with what should. It catches kernels whose offloads are there but wrong
// (docs/kernels.md lists those that were).

// check is one comparison.
type check struct {
	feature string   // goes off when it fails
	what    string   // which of the feature's checks it is; empty: the only one
	through []string // features that it goes through beside; not tried without them
	when    func() bool
	run     func(c *circuit, k *check) (outcome, error)
}

// outcome is what a check that passed has to tell: how many superpackets it sent, and how many of them came
// out whole. One that the kernel cut rightly is no fault, but no gain either.
type outcome struct{ sent, whole int }

var checks = []check{
	{feature: TUNVnet, run: checkChecksum},
	{feature: TUNTCPGRO, run: forward(unix.IPPROTO_TCP, offloadNone)},
	{feature: TUNTSO, through: []string{TUNTCPGRO}, run: forward(unix.IPPROTO_TCP, offloadTSO)},
	{feature: TUNUDPGRO, what: "forwarded", run: forward(unix.IPPROTO_UDP, offloadNone)},
	{feature: TUNUDPGRO, what: "delivered", run: checkDelivery},
	{feature: TUNUDPGRO, what: "to a VXLAN device", when: vxlanLoaded, run: checkVXLAN},
	{feature: TUNUSO, through: []string{TUNUDPGRO}, run: forward(unix.IPPROTO_UDP, offloadUSO)},
	{feature: UDPGSO, through: []string{TUNVnet}, run: checkUDPGSO},
	{feature: UDPGRO, run: checkUDPGRO},
}

// testedFeatures lists the features that have a check.
func testedFeatures() []string {
	var names []string
	for _, c := range checks {
		if !slices.Contains(names, c.feature) {
			names = append(names, c.feature)
		}
	}
	return names
}

// selfTest runs every check whose feature may still be used, and tells the results.
func (e *examiner) selfTest(c *circuit) {
	if err := c.carries(); err != nil {
		e.untestable(fmt.Errorf("the throw-away network carries nothing: %w", err))
		return
	}
	for _, name := range testedFeatures() {
		if e.features.On(name) {
			e.say(e.test(c, name))
		}
	}
}

// test runs the checks of one feature, until one fails.
func (e *examiner) test(c *circuit, feature string) Probe {
	c.features = e.features
	var all outcome
	for i := range checks {
		k := &checks[i]
		if k.feature != feature || k.when != nil && !k.when() {
			continue
		}
		if off := slices.IndexFunc(k.through, func(n string) bool { return !e.features.On(n) }); off >= 0 {
			return e.untested(feature, fmt.Errorf("it goes through %s, which is off", k.through[off]))
		}
		o, err := k.run(c, k)
		switch {
		case errors.As(err, new(untold)):
			return e.untested(feature, err)
		case err != nil:
			return Probe{Name: feature, Answer: No, Err: err, Reason: fmt.Sprintf("%s: %v", k.title(), err), Broken: !errors.As(err, new(unix.Errno))}
		}
		all.sent += o.sent
		all.whole += o.whole
	}
	p := given("self-test passed")
	p.Name = feature
	if all.sent > 0 {
		p.Reason = fmt.Sprintf("self-test passed, %d of %d superpackets whole", all.whole, all.sent)
	}
	return p
}

func (k *check) title() string {
	if k.what == "" {
		return "self-test"
	}
	return "self-test, " + k.what
}

// carries makes sure that a plain packet comes through.
func (c *circuit) carries() error {
	g, err := c.attempt(&check{}, unix.IPPROTO_UDP, func(f flow) ([][]byte, error) {
		p := f.packet([]byte("plain"))
		return cut(p, len(p)), c.put(p, gso.Info{})
	})
	if err == nil && len(g.packets) == 0 {
		err = errLate
	}
	return err
}

// attempt sends something along a flow of its own from in to out, the sentinel behind it, and gathers what
// comes out. send returns what should, as it was before it was forwarded. An error that is no untold one tells
// how they differ.
func (c *circuit) attempt(k *check, proto byte, send func(flow) (want [][]byte, err error)) (gathered, error) {
	port := c.nextPort()
	f := flow{proto: proto, ttl: 64,
		src: endpoint{Addr: inPeer, Port: sourcePort}, dst: endpoint{Addr: outPeer, Port: port}}
	want, err := send(f)
	if err != nil {
		return gathered{}, err
	}
	end := flow{proto: unix.IPPROTO_UDP, ttl: 64,
		src: endpoint{Addr: inPeer, Port: port}, dst: endpoint{Addr: outPeer, Port: sentinelPort}}
	if err := c.put(end.packet(sentinel), gso.Info{}); err != nil {
		return gathered{}, untold{err}
	}
	g, err := c.gather(k, port, len(want))
	if err != nil {
		return g, err
	}
	for _, p := range want {
		p[8]-- // the TTL, for the one hop
		finish(p)
	}
	return g, comparePackets(want, g.packets)
}

// checkChecksum: a packet whose checksum is left to the kernel leaves with a right one.
func checkChecksum(c *circuit, k *check) (outcome, error) {
	if err := c.out.setOffload(offloadNone); err != nil {
		return outcome{}, untold{err}
	}
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		_, err := c.attempt(k, proto, func(f flow) ([][]byte, error) {
			p := f.packet(shapes[0].payload()[:1001])
			want := cut(p, len(p))
			return want, c.put(p, leaveChecksum(p, 0))
		})
		if err != nil {
			return outcome{}, err
		}
	}
	return outcome{}, nil
}

// forward is the check that superpackets are forwarded as they are, or as right segments, to a device that
// takes offload. What TSO and USO need is on the device that is read.
func forward(proto byte, offload int) func(*circuit, *check) (outcome, error) {
	return func(c *circuit, k *check) (o outcome, err error) {
		if err := c.out.setOffload(offload); err != nil {
			return o, untold{err}
		}
		for _, s := range shapes {
			g, err := c.attempt(k, proto, func(f flow) ([][]byte, error) {
				p := f.packet(s.payload())
				want := cut(p, s.size)
				return want, c.put(p, leaveChecksum(p, s.size))
			})
			if err != nil {
				return o, err
			}
			if offload != offloadNone {
				o.sent++
				o.whole += g.whole
			}
		}
		return o, nil
	}
}

// checkDelivery: a superpacket for a UDP socket that wants single datagrams becomes these.
func checkDelivery(c *circuit, k *check) (o outcome, err error) {
	for _, s := range shapes {
		if _, err := c.deliver(k, s, c.putRun); err != nil {
			return o, err
		}
	}
	return o, nil
}

// deliver gives a socket of ours a superpacket by means of give, and compares what it gets.
func (c *circuit) deliver(k *check, s shape, give func(flow, shape) error, options ...option) (gathered, error) {
	port := c.nextPort()
	socket, err := c.listen(inAddr, port, options...)
	if err != nil {
		return gathered{}, err
	}
	defer socket.close()
	f := flow{proto: unix.IPPROTO_UDP, ttl: 64,
		src: endpoint{Addr: inPeer, Port: sourcePort}, dst: endpoint{Addr: inAddr, Port: port}}
	if err := give(f, s); err != nil {
		return gathered{}, err
	}
	want := s.pieces(s.payload())
	g, err := c.gatherDatagrams(k, socket, len(want))
	if err != nil {
		return g, err
	}
	return g, compare(want, g.packets)
}

// putRun writes a UDP superpacket to the TUN device, and the sentinel.
func (c *circuit) putRun(f flow, s shape) error {
	p := f.packet(s.payload())
	if err := c.put(p, leaveChecksum(p, s.size)); err != nil {
		return err
	}
	if err := c.put(f.packet(sentinel), gso.Info{}); err != nil {
		return untold{err}
	}
	return nil
}

// loopRun sends a UDP superpacket from a socket over the loopback interface, and the sentinel.
func (c *circuit) loopRun(f flow, s shape) error {
	socket, err := c.listen(inAddr, 0)
	if err != nil {
		return err
	}
	defer socket.close()
	if err := socket.send(f.dst, s.payload(), s.size); err != nil {
		return untold{err}
	}
	if err := socket.send(f.dst, sentinel, 0); err != nil {
		return untold{err}
	}
	return nil
}

// checkUDPGSO: a run of datagrams that a socket sends in one piece leaves as what it stands for. The device
// finishes checksums, without which most kernels refuse to cut (EIO), but cuts nothing itself.
func checkUDPGSO(c *circuit, k *check) (o outcome, err error) {
	if err := c.out.setOffload(offloadCsum); err != nil {
		return o, untold{err}
	}
	for _, s := range shapes {
		if err := c.sendRun(k, s); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (c *circuit) sendRun(k *check, s shape) error {
	port := c.nextPort()
	socket, err := c.listen(outAddr, port,
		option{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT}, // as the underlay's sockets have it
		option{unix.IPPROTO_IP, unix.IP_TTL, 64})
	if err != nil {
		return err
	}
	defer socket.close()
	f := flow{proto: unix.IPPROTO_UDP, ttl: 64, fragment: true,
		src: endpoint{Addr: outAddr, Port: port}, dst: endpoint{Addr: outPeer, Port: port}}
	payload := s.payload()
	if err := socket.send(f.dst, payload, s.size); err != nil {
		return refused(fmt.Sprintf("send %v", s), err)
	}
	if err := socket.send(endpoint{Addr: outPeer, Port: sentinelPort}, sentinel, 0); err != nil {
		return untold{err}
	}
	want := cut(f.packet(payload), s.size)
	g, err := c.gather(k, port, len(want))
	if err != nil {
		return err
	}
	return comparePackets(want, g.packets)
}

// checkUDPGRO: a socket with UDP_GRO gets the bytes of a superpacket, and the right length of its segments.
// Where the TUN device takes no UDP superpacket (before Linux 6.2), another socket sends it.
func checkUDPGRO(c *circuit, k *check) (o outcome, err error) {
	give := c.putRun
	if !c.features.On(TUNUDPGRO) {
		if give = c.loopRun; !c.features.On(UDPGSO) {
			return o, untold{fmt.Errorf("it takes %s or %s to make a superpacket", TUNUDPGRO, UDPGSO)}
		}
	}
	for _, s := range shapes {
		g, err := c.deliver(k, s, give, option{unix.IPPROTO_UDP, unix.UDP_GRO, 1})
		if err != nil {
			return o, err
		}
		o.sent++
		o.whole += g.whole
	}
	return o, nil
}

// vxlanLoaded reports whether a VXLAN device can be made without a module being loaded, which would stay. As
// long as it is not loaded, no traffic goes into such a device.
func vxlanLoaded() bool {
	_, err := os.Stat("/sys/module/vxlan")
	return err == nil
}

// checkVXLAN: a run of VXLAN datagrams that comes out of the overlay, for a VXLAN device of this host, reaches
// it. Kernels before 6.8.5 (3d010c8031e3) dropped it when it was written in one piece.
func checkVXLAN(c *circuit, k *check) (o outcome, err error) {
	const vni = 1
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "vxprobe", mac
	if err := c.links.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: vxlanPort}); err != nil {
		return o, untold{fmt.Errorf("VXLAN device: %w", err)}
	}
	if err := c.bringUp(attrs.Name, &vxlanAddr); err != nil {
		return o, untold{err}
	}
	if err := sysctl("ipv4/conf/"+attrs.Name+"/rp_filter", "0"); err != nil {
		return o, untold{err}
	}
	port := c.nextPort()
	socket, err := c.listen(vxlanAddr, port)
	if err != nil {
		return o, err
	}
	defer socket.close()

	inner := flow{proto: unix.IPPROTO_UDP, ttl: 64,
		src: endpoint{Addr: vxlanPeer, Port: sourcePort}, dst: endpoint{Addr: vxlanAddr, Port: port}}
	outer := flow{proto: unix.IPPROTO_UDP, ttl: 64,
		src: endpoint{Addr: inPeer, Port: sourcePort}, dst: endpoint{Addr: inAddr, Port: vxlanPort}}
	frame := func(payload []byte) []byte {
		b := []byte{0x08, 0, 0, 0, 0, 0, vni, 0} // RFC 7348, section 5: the flag I, and the VNI
		b = append(b, mac...)
		b = append(b, 0x02, 0, 0, 0, 0, 2)
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
		return append(b, inner.packet(payload)...)
	}
	s := shape{2*1000 + 500, 1000}
	want := s.pieces(s.payload())
	var run []byte
	for _, payload := range want {
		run = append(run, frame(payload)...)
	}
	p := outer.packet(run)
	if err := c.put(p, leaveChecksum(p, len(frame(want[0])))); err != nil {
		return o, err
	}
	if err := c.put(outer.packet(frame(sentinel)), gso.Info{}); err != nil {
		return o, untold{err}
	}
	g, err := c.gatherDatagrams(k, socket, len(want))
	if err != nil {
		return o, err
	}
	return o, compare(want, g.packets)
}
