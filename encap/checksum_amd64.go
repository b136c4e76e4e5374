package encap

import "golang.org/x/sys/cpu"

// wideMin is the length, in bytes, from which sumWide is the faster one.
const wideMin = 128

var hasWide = cpu.X86.HasAVX2

// sumWide adds up b, whose length is a multiple of 32 and not 0, as numbers of 32 bits in this machine's byte
// order. The sum fits for any b below 16 GiB.
//
//go:noescape
func sumWide(b []byte) uint64
