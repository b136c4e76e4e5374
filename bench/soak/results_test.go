package soak

import (
	"math"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	at := func(s Sample) float64 { return float64(s.Resident) }
	for name, test := range map[string]struct {
		value func(i int) int64
		want  float64
	}{
		"flat":       {func(int) int64 { return 5000 }, 0},
		"leak":       {func(i int) int64 { return 5000 + int64(i)*10 }, 990},
		"saw":        {func(i int) int64 { return 5000 + int64(i%10)*100 }, 0},
		"a peak":     {func(i int) int64 { return 5000 + int64(1000*math.Exp(-math.Pow(float64(i)-49.5, 2))) }, 0},
		"leaky saw":  {func(i int) int64 { return 5000 + int64(i)*10 + int64(i%10)*100 }, 990},
		"going down": {func(i int) int64 { return 5000 - int64(i)*10 }, -990},
	} {
		var samples []Sample
		for i := range 100 {
			samples = append(samples, Sample{At: float64(i) * 5, Resident: test.value(i)})
		}
		if got := Growth(samples, at); math.Abs(got-test.want) > 120 {
			t.Errorf("%s: grew by %.1f, want %.1f", name, got, test.want)
		}
	}
	if Growth(nil, at) != 0 || Growth([]Sample{{At: 1}, {At: 1, Resident: 5}}, at) != 0 {
		t.Error("without a length of time something grew")
	}
}

func TestResultsAreKept(t *testing.T) {
	r := &Results{Began: time.Unix(1, 0).UTC(), Length: 20, Kernel: "6.1", Cores: 2, Daemons: []Daemon{{Name: "h2", Samples: []Sample{
		{At: 5, Resident: 1, Goroutines: 2, Descriptors: 3, Drops: map[string]uint64{"a": 1}},
		{At: 10, Resident: 1, Goroutines: 2, Descriptors: 3, Drops: map[string]uint64{"a": 1, "b": 2}},
	}}}}
	path := filepath.Join(t.TempDir(), JSONFile)
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v, %v", got, err)
	}
	if half := r.Daemons[0].SecondHalf(r.Length); len(half) != 1 || half[0].Dropped() != 3 {
		t.Errorf("second half %+v", half)
	}
}
