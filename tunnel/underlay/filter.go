package underlay

import (
	"slices"

	"golang.org/x/net/bpf"
)

// The early filter is a classic BPF program (bpf(4), Documentation/networking/filter.rst in the kernel) on the
// receiving sockets. It looks at the outer source address alone, and refuses what lies in no range of a set:
//
//	  A = number of the source address - first number of the set
//	  decision tree over the numbers at which "in" changes to "out" and back
//	in:  return everything
//	out: return 0
//
// Below the set's first number the subtraction wraps round, so that such a number is larger than any in the
// set. It also keeps the numbers small: the kernel turns a comparison into one instruction of its own only
// where the number has no sign bit (bpf_convert_filter in net/core/filter.c).

// source is where a filter finds the source address.
type source struct {
	offset uint32
	six    bool
}

// networkHeader is SKF_NET_OFF (linux/filter.h), where a socket filter finds the IP header, while 0 is the UDP header.
const networkHeader = 0xfff00000

var (
	source4 = source{networkHeader + 12, false} // RFC 791, section 3.1
	source6 = source{networkHeader + 8, true}   // RFC 8200, section 3
)

// number has A be the number of the source address, which begins at offset (see number in spans.go).
func (f source) number() []bpf.Instruction {
	if !f.six {
		return []bpf.Instruction{bpf.LoadAbsolute{Off: f.offset, Size: 4}}
	}
	var program []bpf.Instruction
	for i, factor := range wordFactors {
		program = append(program, bpf.LoadAbsolute{Off: f.offset + 4*uint32(i), Size: 4})
		if factor != 1 {
			program = append(program, bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: factor})
		}
		if i > 0 {
			program = append(program, bpf.ALUOpX{Op: bpf.ALUOpAdd})
		}
		if i < len(wordFactors)-1 {
			program = append(program, bpf.TAX{})
		}
	}
	return program
}

const (
	maxInstructions = 4096 // BPF_MAXINSNS in linux/bpf_common.h
	maxJump         = 255  // of a conditional jump, whose offset has 8 bits

	keepAll = 1<<32 - 1 // bytes of a datagram to keep
)

// filterProgram lets in what comes from an address whose number is in s.
func filterProgram(s spans, from source) []bpf.Instruction {
	var a assembler
	if len(s) == 0 {
		a.verdict(false)
		return a.program()
	}
	base := s[0].first
	var turns []uint32 // where the verdict changes, less base
	for i, one := range s {
		if i > 0 {
			turns = append(turns, one.first-base)
		}
		if end := one.last + 1 - base; end != 0 { // 0: all round, back to base
			turns = append(turns, end)
		}
	}
	a.tree(turns, true)
	a.emit(bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: base})
	for _, i := range slices.Backward(from.number()) {
		a.emit(i)
	}
	return a.program()
}

// assembler writes a program from its end to its beginning, since jumps lead forward only. A place is the
// number of instructions from there to the end.
type assembler struct {
	reverse  []bpf.Instruction
	verdicts [2]int // the last place that returns refusal, and consent; 0: none
}

func (a *assembler) emit(i bpf.Instruction) int {
	a.reverse = append(a.reverse, i)
	return len(a.reverse)
}

func (a *assembler) program() []bpf.Instruction {
	n := len(a.reverse)
	p := make([]bpf.Instruction, n)
	for i, instruction := range a.reverse {
		p[n-1-i] = instruction
	}
	return p
}

// skip is how many instructions lie between the next one emitted and a place.
func (a *assembler) skip(place int) int { return len(a.reverse) - place }

// near is a place within reach of a conditional jump, that of the given place or a jump to it. Two more
// instructions may follow it.
func (a *assembler) near(place int) int {
	if a.skip(place) <= maxJump-2 {
		return place
	}
	return a.emit(bpf.Jump{Skip: uint32(a.skip(place))})
}

// verdict is a place that returns one, within reach.
func (a *assembler) verdict(in bool) int {
	keep, which := uint32(0), 0
	if in {
		keep, which = keepAll, 1
	}
	if at := a.verdicts[which]; at == 0 || a.skip(at) > maxJump-2 {
		a.verdicts[which] = a.emit(bpf.RetConstant{Val: keep})
	}
	return a.verdicts[which]
}

// tree is a place that decides over A: below the first turn the verdict is first, and each turn reverses it.
func (a *assembler) tree(turns []uint32, first bool) int {
	if len(turns) == 0 {
		return a.verdict(first)
	}
	middle := len(turns) / 2
	right := a.tree(turns[middle+1:], first == (middle%2 == 1))
	left := a.tree(turns[:middle], first)
	right = a.near(right)
	left = a.near(left)
	return a.emit(bpf.JumpIf{
		Cond: bpf.JumpGreaterOrEqual, Val: turns[middle],
		SkipTrue: uint8(a.skip(right)), SkipFalse: uint8(a.skip(left)),
	})
}
