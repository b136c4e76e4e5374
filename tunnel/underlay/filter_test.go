package underlay

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"muslin/tunnel/fib"
)

// inVM runs a filter in the VM of golang.org/x/net, which knows no SKF_NET_OFF: the source address comes at
// the beginning.
func inVM(t testing.TB, s spans) func(source uint32) bool {
	t.Helper()
	program := filterProgram(s, source{})
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatalf("a filter of %d ranges: %v", len(s), err)
	}
	if _, err := bpf.Assemble(program); err != nil {
		t.Fatal(err)
	}
	return func(source uint32) bool {
		n, err := vm.Run(binary.BigEndian.AppendUint32(nil, source))
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// edges are the addresses at which a verdict may change, and some in between.
func edges(s spans, rng *rand.Rand) []uint32 {
	all := []uint32{0, 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32 - 1, math.MaxUint32}
	for _, one := range s {
		all = append(all, one.first-1, one.first, one.first+(one.last-one.first)/2, one.last, one.last+1)
	}
	for range 50 {
		all = append(all, rng.Uint32())
	}
	return all
}

// slowContains is the twin of the filter and of spans.contains.
func slowContains(s spans, addr uint32) bool {
	return slices.ContainsFunc(s, func(one span) bool { return one.first <= addr && addr <= one.last })
}

// randomAddrs draws addresses as peers have them: some side by side, some far from any other.
func randomAddrs(rng *rand.Rand, n int) []uint32 {
	base := rng.Uint32()
	width := uint32(1) << rng.IntN(32)
	addrs := make([]uint32, n)
	for i := range addrs {
		addrs[i] = base + rng.Uint32N(width)
		if rng.IntN(10) == 0 {
			addrs[i] = rng.Uint32()
		}
	}
	return addrs
}

func TestFilterAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	fixed := []spans{
		nil, everything, {{0, 0}}, {{math.MaxUint32, math.MaxUint32}}, {{0, 0}, {math.MaxUint32, math.MaxUint32}},
		{{5, math.MaxUint32}}, {{0, 7}}, {{0, 7}, {9, math.MaxUint32}}, {{math.MaxInt32, math.MaxInt32 + 1}},
	}
	for i := range 300 {
		var s spans
		if i < len(fixed) {
			s = fixed[i]
		} else {
			s = spansOf(randomAddrs(rng, rng.IntN(1200)))
		}
		in := inVM(t, s)
		for _, addr := range edges(s, rng) {
			want := slowContains(s, addr)
			if got := in(addr); got != want {
				t.Fatalf("%d ranges: the filter lets %#x in: %v, want %v", len(s), addr, got, want)
			}
			if got := s.contains(addr); got != want {
				t.Fatalf("%d ranges contain %#x: %v, want %v", len(s), addr, got, want)
			}
		}
	}
}

// The filter agrees with the check that the VTEP makes (fib.Table.KnowsOuter): on every address where the
// ranges are exact, and never against a peer where they had to be made coarse.
func TestFilterAgainstTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		addrs := randomAddrs(rng, 1+rng.IntN(1500))
		var peers []*fib.Peer
		for i, a := range addrs {
			peers = append(peers, &fib.Peer{Subnet: netip.PrefixFrom(address(uint32(i)<<8), 24), PublicIP: address(a)})
		}
		table := fib.New(peers)
		exact := spansOf(outerAddrs(table, false))
		coarse := exact.coarse(1 + rng.IntN(len(exact)))
		in, inCoarse := inVM(t, exact), inVM(t, coarse)
		for _, addr := range edges(exact, rng) {
			knows := table.KnowsOuter(address(addr))
			if in(addr) != knows {
				t.Fatalf("the table knows %v: %v, the filter says %v", address(addr), knows, !knows)
			}
			if knows && !inCoarse(addr) {
				t.Fatalf("the filter of %d ranges refuses the peer %v", len(coarse), address(addr))
			}
		}
	}
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// The sizes that the kernel allows are kept, and depth stays that of a balanced tree.
func TestFilterSize(t *testing.T) {
	for _, c := range []struct{ ranges, most int }{{0, 1}, {1, 6}, {10, 40}, {1000, 2300}, {maxRanges, maxInstructions}} {
		var s spans
		for i := range uint32(c.ranges) {
			s = append(s, span{i * 1000, i*1000 + i%999})
		}
		program := filterProgram(s, source4)
		if len(program) > c.most {
			t.Errorf("%d ranges take %d instructions, want at most %d", c.ranges, len(program), c.most)
		}
		if _, err := bpf.Assemble(program); err != nil {
			t.Errorf("%d ranges: %v", c.ranges, err)
		}
		if c.ranges == 0 {
			continue
		}
		if got := depth(program); got > 2*12+3 {
			t.Errorf("%d ranges: the longest way through %d instructions has %d", c.ranges, len(program), got)
		}
	}
}

// depth is the most instructions that a datagram meets.
func depth(program []bpf.Instruction) int {
	longest := make([]int, len(program)+1)
	for i := len(program) - 1; i >= 0; i-- {
		switch ins := program[i].(type) {
		case bpf.RetConstant:
			longest[i] = 1
		case bpf.Jump:
			longest[i] = 1 + longest[i+1+int(ins.Skip)]
		case bpf.JumpIf:
			longest[i] = 1 + max(longest[i+1+int(ins.SkipTrue)], longest[i+1+int(ins.SkipFalse)])
		default:
			longest[i] = 1 + longest[i+1]
		}
	}
	return longest[0]
}

func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		a, b := spansOf(randomAddrs(rng, rng.IntN(200))), spansOf(randomAddrs(rng, rng.IntN(200)))
		union := a.with(b)
		bits := 1 + rng.IntN(32)
		wide := a.prefixes(bits)
		most := 1 + rng.IntN(200)
		coarse := a.coarse(most)
		for name, s := range map[string]spans{"spansOf": a, "with": union, "prefixes": wide, "coarse": coarse} {
			for i := range s {
				if s[i].last < s[i].first || i > 0 && s[i].first-1 <= s[i-1].last {
					t.Fatalf("%s: ranges %d and before are not apart: %v", name, i, s[max(0, i-1):i+1])
				}
			}
		}
		for _, addr := range slices.Concat(edges(a, rng), edges(b, rng), edges(coarse, rng)) {
			inA := slowContains(a, addr)
			if got := slowContains(union, addr); got != (inA || slowContains(b, addr)) {
				t.Fatalf("the union contains %#x: %v", addr, got)
			}
			if inA && !slowContains(coarse, addr) {
				t.Fatalf("the coarse set lacks %#x", addr)
			}
			want := slices.ContainsFunc(a, func(one span) bool {
				return one.first>>(32-bits) <= addr>>(32-bits) && addr>>(32-bits) <= one.last>>(32-bits)
			})
			if got := slowContains(wide, addr); got != want {
				t.Fatalf("the networks of %d bits contain %#x: %v, want %v", bits, addr, got, want)
			}
		}
		if len(coarse) != min(len(a), most) {
			t.Fatalf("%d ranges made coarse to %d are %d", len(a), most, len(coarse))
		}
		// No gap that was closed is larger than one that was left.
		closed, left := uint32(0), uint32(math.MaxUint32)
		for i := range max(1, len(a)) - 1 {
			gap := a[i+1].first - a[i].last
			if slowContains(coarse, a[i].last+1) {
				closed = max(closed, gap)
			} else {
				left = min(left, gap)
			}
		}
		if closed > left {
			t.Fatalf("a gap of %d was closed, and one of %d left", closed, left)
		}
	}
}

// FuzzFilter: whatever the peers' addresses are, the program is one that the kernel takes, agrees with its twin,
// and a coarse one refuses none of them.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1, 192, 0, 2, 2, 10, 0, 0, 1}, uint32(0xc0000203), uint16(1))
	f.Add([]byte{0, 0, 0, 0, 255, 255, 255, 255}, uint32(0x7fffffff), uint16(2))
	f.Add([]byte{}, uint32(0), uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, probe uint32, most uint16) {
		var addrs []uint32
		var six [][16]byte
		for b := data; len(b) >= 16; b = b[16:] {
			six = append(six, [16]byte(b))
		}
		for ; len(data) >= 4; data = data[4:] {
			addrs = append(addrs, binary.BigEndian.Uint32(data))
		}
		exact := spansOf(slices.Clone(addrs))
		coarse := exact.coarse(1 + int(most))
		in, inCoarse := inVM(t, exact), inVM(t, coarse)
		for _, a := range append(addrs, probe, probe+1) {
			known := slices.Contains(addrs, a)
			if in(a) != known || exact.contains(a) != known || known && !inCoarse(a) {
				t.Fatalf("%#x is a peer's: %v; the filter says %v, the ranges %v, the coarse filter %v", a, known, in(a), exact.contains(a), inCoarse(a))
			}
		}
		checkFilter6(t, six)
		if len(coarse) > 1+int(most) || len(exact) <= maxRanges && len(filterProgram(exact, source4)) > maxInstructions {
			t.Fatalf("%d ranges made coarse to %d are %d", len(exact), 1+most, len(coarse))
		}
	})
}

// checkFilter6 holds the filter of some IPv6 addresses, and of each of them alone, against their numbers.
func checkFilter6(t *testing.T, all [][16]byte) {
	t.Helper()
	var numbers []uint32
	for _, a := range all {
		if n, ok := number(netip.AddrFrom16(a), true); ok {
			numbers = append(numbers, n)
		}
	}
	for _, s := range []spans{spansOf(slices.Clone(numbers)), spansOf(slices.Clone(numbers[:len(numbers)/2]))} {
		vm, err := bpf.NewVM(filterProgram(s, source{six: true}))
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range all {
			if kept, err := vm.Run(a[:]); err != nil || (kept > 0) != s.contains(numbers[i]) {
				t.Fatalf("the filter says %d of %v (%v), whose number is %#x", kept, netip.AddrFrom16(a), err, numbers[i])
			}
		}
	}
}

// number4 is an IPv4 address as a number.
func number4(a netip.Addr) uint32 {
	n, ok := number(a, false)
	if !ok {
		panic(a)
	}
	return n
}
