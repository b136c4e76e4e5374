//go:build linux

package link

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestSearchLargest(t *testing.T) {
	for _, limit := range []int{minPacket, minPacket + 1, 68, 576, 1280, 1399, 1400, 1449, 1450, 1499, 1500, 1501, 8999, 9000, 65534, maxPacket} {
		for _, expected := range []int{0, minPacket, 1450, 1500, 9000, maxPacket} {
			questions := 0
			got, err := searchLargest(expected, func(size int, _ bool) (bool, error) {
				questions++
				if size <= minPacket || size > maxPacket {
					t.Fatalf("limit %d, expected %d: asked for %d", limit, expected, size)
				}
				return size <= limit, nil
			})
			if err != nil || got != limit {
				t.Errorf("limit %d, expected %d: found %d, %v", limit, expected, got, err)
			}
			if most := 3 + 16; questions > most || expected == limit && limit > minPacket && questions > 3 {
				t.Errorf("limit %d, expected %d: %d questions", limit, expected, questions)
			}
		}
	}
	broken := errors.New("broken")
	if _, err := searchLargest(1500, func(int, bool) (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("%v; want %v", err, broken)
	}
}

// Answers that were late do not make the result smaller.
func TestSearchLargestWithWrongNoes(t *testing.T) {
	for _, limit := range []int{minPacket, 1350, 1450, 1500, 9000, maxPacket} {
		for _, wrong := range []int{1, 2, 5} { // of the first questions about sizes that pass
			left := wrong
			got, err := searchLargest(1500, func(size int, sure bool) (bool, error) {
				if !sure && size <= limit && left > 0 {
					left--
					return false, nil
				}
				return size <= limit, nil
			})
			if err != nil || got != limit {
				t.Errorf("limit %d, %d wrong answers: found %d, %v", limit, wrong, got, err)
			}
		}
	}
}

func TestCounter(t *testing.T) {
	for name, c := range map[string]struct {
		count    int
		arrivals []uint32
		want     tally
	}{
		"nothing":          {count: 3},
		"in order":         {3, []uint32{0, 1, 2}, tally{Received: 3}},
		"a gap":            {4, []uint32{0, 3}, tally{Received: 2}},
		"swapped":          {3, []uint32{1, 0, 2}, tally{Received: 3, Reordered: 1}},
		"twice":            {3, []uint32{0, 0, 1, 0}, tally{Received: 2, Duplicated: 2}},
		"not announced":    {64, []uint32{64, 65, 1 << 31, 63}, tally{Received: 1}},
		"none announced":   {0, []uint32{0, 1}, tally{}},
		"backwards":        {3, []uint32{2, 1, 0}, tally{Received: 3, Reordered: 2}},
		"over a word's 64": {130, []uint32{129, 64, 63, 64}, tally{Received: 3, Reordered: 2, Duplicated: 1}},
	} {
		counter := newCounter(c.count)
		for _, seq := range c.arrivals {
			counter.add(seq)
		}
		if counter.tally != c.want {
			t.Errorf("%s: %+v, want %+v", name, counter.tally, c.want)
		}
	}
}

func TestSummarise(t *testing.T) {
	ms := func(n int) []time.Duration { // 1 to n ms, shuffled
		var out []time.Duration
		for i := range n {
			out = append(out, time.Duration(i+1)*time.Millisecond)
		}
		rand.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	value := func(p *float64) float64 {
		if p == nil {
			return -1
		}
		return *p
	}
	for _, c := range []struct {
		samples             int
		min, p50, p99, p999 float64
		max                 float64
	}{
		{0, 0, 0, -1, -1, 0},
		{1, 1000, 1000, -1, -1, 1000},
		{2, 1000, 1000, -1, -1, 2000},
		{99, 1000, 50000, -1, -1, 99000},
		{100, 1000, 50000, 99000, -1, 100000},
		{999, 1000, 500000, 990000, -1, 999000},
		{1000, 1000, 500000, 990000, 999000, 1000000},
		{1001, 1000, 501000, 991000, 1000000, 1001000},
	} {
		l := summarise(ms(c.samples), 4)
		got := []float64{l.Min, l.P50, value(l.P99), value(l.P999), l.Max}
		want := []float64{c.min, c.p50, c.p99, c.p999, c.max}
		if !slices.Equal(got, want) || l.RoundTrips != c.samples || l.Lost != 4 {
			t.Errorf("%d samples: %v of %d, %d lost; want %v", c.samples, got, l.RoundTrips, l.Lost, want)
		}
	}
}

func TestLossOrder(t *testing.T) {
	for name, c := range map[string]struct {
		each time.Duration
		rate int64
		mtu  int
		want order
	}{
		"usual":            {3 * time.Second, 0, 1450, order{Do: orderSend, Size: 1200, PerSecond: 1000, Count: 3000}},
		"unknown MTU":      {time.Second, 0, 0, order{Do: orderSend, Size: 1200, PerSecond: 1000, Count: 1000}},
		"small MTU":        {time.Second, 0, 576, order{Do: orderSend, Size: 576, PerSecond: 1000, Count: 1000}},
		"slower than that": {time.Second, 960000, 1500, order{Do: orderSend, Size: 1200, PerSecond: 100, Count: 100}},
		"short":            {100 * time.Millisecond, MinRate, 1500, order{Do: orderSend, Size: 1200, PerSecond: 104, Count: 10}},
		"no packet fits":   {100 * time.Millisecond, 1, 1500, order{Do: orderSend, Size: 1200, PerSecond: 1, Count: 1}},
	} {
		if got := lossOrder(c.each, c.rate, c.mtu); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestNewLoss(t *testing.T) {
	o := order{Size: 1200, PerSecond: 1000}
	if l, err := newLoss(o, 200, tally{Received: 150, Reordered: 2}); err != nil || l.Share != 0.25 || l.Reordered != 2 || l.Sent != 200 {
		t.Errorf("%+v, %v", l, err)
	}
	for name, c := range map[string][2]int{"nothing arrived": {200, 0}, "nothing sent": {0, 0}} {
		if l, err := newLoss(o, c[0], tally{Received: c[1]}); err == nil {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestTexts(t *testing.T) {
	for rate, want := range map[float64]string{0: "0.00 b/s", 950: "950 b/s", 1500: "1.50 kb/s", 95.24e6: "95.2 Mb/s", 999.9e6: "1000 Mb/s", 13.58e9: "13.6 Gb/s", 2.5e12: "2500 Gb/s"} {
		if got := bitsText(rate); got != want {
			t.Errorf("%v: %s, want %s", rate, got, want)
		}
	}
	for share, want := range map[float64]string{0: "0.0 %", 1: "100.0 %", 0.0123: "1.2 %", 0.0004: "0.040 %"} {
		if got := percentText(share); got != want {
			t.Errorf("%v: %s, want %s", share, got, want)
		}
	}
}
