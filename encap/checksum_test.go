package encap

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// slowSum is Sum as RFC 1071 says it: add 16-bit words, an odd byte being the upper half of one, and
// bring the carries back around.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// sumsTo checks Sum of b on every path that this processor has.
func sumsTo(t *testing.T, b []byte, initial, want uint16) {
	t.Helper()
	if got := Sum(b, initial); got != want {
		t.Fatalf("Sum(%d bytes: %x, %#x) = %#x, want %#x", len(b), b[:min(len(b), 600)], initial, got, want)
	}
	withoutWide(t, func() {
		if got := Sum(b, initial); got != want {
			t.Fatalf("without sumWide: Sum(%d bytes: %x, %#x) = %#x, want %#x", len(b), b[:min(len(b), 600)], initial, got, want)
		}
	})
}

// sumData is n bytes of each kind that a sum may go wrong with. What lies behind a part of it is not 0, so
// that reading past its end shows.
func sumData(n int) map[string][]byte {
	random := make([]byte, n)
	rand.NewChaCha8([32]byte{1, 2}).Read(random)
	return map[string][]byte{
		"random": random,
		"zeros":  make([]byte, n),
		"ones":   bytes.Repeat([]byte{0xff}, n),
		"carry":  bytes.Repeat([]byte{0xff, 0xfe, 0, 1}, n/4+1)[:n],
	}
}

func TestSumAgainstTwin(t *testing.T) {
	const longest = 2*wideMin + 5*64 // twice through every loop
	rng := rand.New(rand.NewPCG(1, 2))
	for _, data := range sumData(longest + 32) {
		for align := range 32 {
			for n := range longest {
				b := data[align : align+n]
				initial := []uint16{0, 1, 0x8000, 0xfffe, 0xffff, uint16(rng.Uint32())}[rng.IntN(6)]
				sumsTo(t, b, initial, slowSum(b, initial))
			}
		}
	}
	sumsTo(t, nil, 0, 0)
}

// Packets of all sizes, and more than a packet: no lane may run over.
func TestSumOfLong(t *testing.T) {
	for _, data := range sumData(1<<20 + 7) {
		for _, n := range []int{1400, 1447, 1448, 1500, 8960, 32768, 65000, 65535, 65536, 65549, len(data)} {
			for _, initial := range []uint16{0, 0xfffe} {
				b := data[len(data)-n:]
				sumsTo(t, b, initial, slowSum(b, initial))
			}
		}
	}
}

// Of the two ways to write zero Sum gives 0 for zeros alone: callers compare with 0xffff.
func TestSumOfZero(t *testing.T) {
	for n := range 400 {
		sumsTo(t, make([]byte, n), 0, 0)
		sumsTo(t, make([]byte, n), 0xffff, 0xffff)
		if n >= 2 {
			b := make([]byte, n)
			b[0], b[1] = 0xff, 0xff
			sumsTo(t, b, 0, 0xffff)
			b[n-1] ^= 0x80
			initial := ^slowSum(b, 0)
			sumsTo(t, b, initial, 0xffff)
		}
	}
}

// The example of RFC 1071, section 3.
func TestSumOfRFC1071(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Sum(b, 0); got != 0xddf2 {
		t.Errorf("Sum = %#x, want 0xddf2", got)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0), uint8(0))
	f.Add([]byte{1}, uint16(0xffff), uint8(1), uint8(200))
	f.Add(bytes.Repeat([]byte{0xff}, 67), uint16(0xffff), uint8(3), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff, 0xfe, 0, 1}, 65), uint16(1), uint8(33), uint8(3))
	// The data comes times over, so that it gets long enough for every path.
	f.Fuzz(func(t *testing.T, data []byte, initial uint16, skip, times uint8) {
		data = bytes.Repeat(data, int(times)+1)
		b := data[min(int(skip), len(data)):]
		sumsTo(t, b, initial, slowSum(b, initial))
	})
}
