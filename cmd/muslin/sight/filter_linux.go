package sight

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// take is how many bytes of a packet are kept.
const take = 256

// assemble is a filter that lets through what may be one of the packets, an answer to one, or an error about one, to be
// looked at closely by match. It sees a packet from its IP header on. Fragments but the first have no ports, and pass as if they
// had, or not; match throws them away.
func assemble(packets []Packet) ([]unix.SockFilter, error) {
	var c code
	for i := range packets {
		c.packet(&packets[i])
	}
	c.add(bpf.RetConstant{Val: 0})
	raw, err := bpf.Assemble(c.resolved())
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return out, nil
}

// code is a program whose jumps name the place that they go to where the condition does not hold.
type code struct {
	all   []bpf.Instruction
	jumps map[int]string // by the instruction's number
	names map[string]int
	n     int // packets
}

func (c *code) add(all ...bpf.Instruction) { c.all = append(c.all, all...) }

// want goes on if the accumulator compares so, and else at a name.
func (c *code) want(cond bpf.JumpTest, val uint32, otherwise string) {
	if c.jumps == nil {
		c.jumps, c.names = make(map[int]string), make(map[string]int)
	}
	c.jumps[len(c.all)] = c.here(otherwise)
	c.add(bpf.JumpIf{Cond: cond, Val: val})
}

func (c *code) here(name string) string { return fmt.Sprint(c.n, name) }

func (c *code) label(name string) { c.names[c.here(name)] = len(c.all) }

func (c *code) resolved() []bpf.Instruction {
	for at, name := range c.jumps {
		j := c.all[at].(bpf.JumpIf)
		j.SkipFalse = uint8(c.names[name] - at - 1)
		c.all[at] = j
	}
	return c.all
}

// packet is what one of them takes.
func (c *code) packet(p *Packet) {
	proto, src, dst, version := uint32(9), uint32(12), uint32(16), uint32(4)
	if p.Dst.Is6() {
		proto, src, dst, version = 6, 8, 24, 6
	}
	c.add(bpf.LoadAbsolute{Off: 0, Size: 1}, bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4})
	c.want(bpf.JumpEqual, version, "next")
	if version == 6 {
		c.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 40})
	} else {
		c.add(bpf.LoadMemShift{Off: 0})
	}

	c.add(bpf.LoadAbsolute{Off: proto, Size: 1})
	if version == 6 {
		c.want(bpf.JumpEqual, protoICMP6, "there")
		c.add(bpf.LoadIndirect{Off: 0, Size: 1})
		c.want(bpf.JumpLessThan, lastError6, "there")
	} else {
		c.want(bpf.JumpEqual, protoICMP, "there")
		c.add(bpf.LoadIndirect{Off: 0, Size: 1})
		c.want(bpf.JumpNotEqual, echoRequest, "there")
		c.want(bpf.JumpNotEqual, echoReply, "there")
	}
	c.add(bpf.RetConstant{Val: take})

	c.label("there")
	c.add(bpf.LoadAbsolute{Off: proto, Size: 1})
	c.want(bpf.JumpEqual, uint32(p.number()), "next")
	c.address(p, dst, "back")
	c.ends(p, uint32(p.SrcPort)<<16|uint32(p.DstPort), "back")
	c.label("back")
	c.address(p, src, "next")
	c.ends(p, uint32(p.DstPort)<<16|uint32(p.SrcPort), "next")
	c.label("next")
	c.n++
}

// address compares the destination's with the one at an offset.
func (c *code) address(p *Packet, off uint32, otherwise string) {
	for b := p.Dst.AsSlice(); len(b) > 0; b, off = b[4:], off+4 {
		c.add(bpf.LoadAbsolute{Off: off, Size: 4})
		c.want(bpf.JumpEqual, binary.BigEndian.Uint32(b), otherwise)
	}
}

// ends compares the ports, or the number of the echo, and takes the packet.
func (c *code) ends(p *Packet, ports uint32, otherwise string) {
	if p.Proto == ICMP {
		c.add(bpf.LoadIndirect{Off: 4, Size: 2})
		c.want(bpf.JumpEqual, uint32(p.ID), otherwise)
	} else {
		c.add(bpf.LoadIndirect{Off: 0, Size: 4})
		c.want(bpf.JumpEqual, ports, otherwise)
	}
	c.add(bpf.RetConstant{Val: take})
}
