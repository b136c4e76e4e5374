//go:build linux && (amd64 || arm64)

package main

import (
	"fmt"
	"runtime"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (seccomp(2)), which the filter sees as its packet. Arguments have 64 bits, and
// the lower half first on a little-endian machine.
const (
	offsetNumber   = 0
	offsetArch     = 4
	offsetArgument = 16
)

// auditArch names the architecture that the numbers of this build belong to (linux/audit.h).
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// filter is the seccomp program of a profile: each call that is refused or asked about is a block of its own, and
// the first that matches decides. What another architecture's calls mean nobody has looked at: they are allowed.
func (p profile) filter() ([]bpf.RawInstruction, error) {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no seccomp filter for %s: amd64 and arm64 have one", runtime.GOARCH)
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	}
	for _, r := range p.rows {
		if r.looked() == nil {
			program = append(program, r.call.block(unix.SECCOMP_RET_ERRNO|uint32(r.errno))...)
		}
	}
	for _, c := range p.asks() {
		program = append(program, c.block(unix.SECCOMP_RET_USER_NOTIF)...)
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	return bpf.Assemble(program)
}

// block returns action for the call, and goes on behind itself for any other.
func (c call) block(action uint32) []bpf.Instruction {
	var tests [][]bpf.Instruction
	for _, a := range c.args {
		tests = append(tests, a.test())
	}
	left := 1 // instructions of the block behind the one at hand
	for _, t := range tests {
		left += len(t)
	}
	block := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(c.number), SkipFalse: uint8(left)},
	}
	for _, t := range tests {
		left -= len(t)
		jump := t[len(t)-1].(bpf.JumpIf)
		jump.SkipFalse = uint8(left)
		block = append(append(block, t[:len(t)-1]...), jump)
	}
	return append(block, bpf.RetConstant{Val: action})
}

// test ends with a jump that is true where the condition holds; where to go otherwise is the caller's to say.
func (a arg) test() []bpf.Instruction {
	load := bpf.LoadAbsolute{Off: uint32(offsetArgument + 8*a.index), Size: 4}
	switch {
	case a.above:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: a.value}}
	case a.any:
		return []bpf.Instruction{load, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: a.mask}}
	default:
		return []bpf.Instruction{load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: a.mask}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: a.value}}
	}
}
