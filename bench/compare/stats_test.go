package compare

import "testing"

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Summary
	}{
		{[]float64{7}, Summary{7, 7, 7, 1}},
		{[]float64{3, 1}, Summary{2, 1, 3, 2}},
		{[]float64{9, 1, 5}, Summary{5, 1, 9, 3}},
		{[]float64{4, 1, 3, 100}, Summary{3.5, 1, 100, 4}},
	} {
		if got, ok := summarize(c.values); !ok || got != c.want {
			t.Errorf("%v: %+v, %v; want %+v", c.values, got, ok, c.want)
		}
	}
	if got, ok := summarize(nil); ok {
		t.Errorf("no values: %+v", got)
	}
	given := []float64{3, 1, 2}
	summarize(given)
	if given[0] != 3 {
		t.Errorf("the caller's values were sorted: %v", given)
	}
}

func TestRatioIsOfTheSameRound(t *testing.T) {
	r := fakeResults()
	for _, c := range []struct {
		figure, system, against string
		want                    Summary
	}{
		// 5/10, 3/4, 1.8/2.
		{"tcp-1", "muslin-vxlan", Baseline, Summary{0.75, 0.5, 0.9, 3}},
		{"tcp-1", Baseline, Baseline, Summary{1, 1, 1, 3}},
		{"tcp-1", "muslin-vxlan:none", "muslin-vxlan", Summary{0.2, 0.125, 0.25, 3}},
		// 150/100 and 160/80, nothing in the third round.
		{"udp-64", "muslin-vxlan", Baseline, Summary{1.75, 1.5, 2, 2}},
	} {
		if got, ok := r.Ratio(c.figure, c.system, c.against); !ok || got != c.want {
			t.Errorf("%s of %s ÷ %s: %+v, %v; want %+v", c.figure, c.system, c.against, got, ok, c.want)
		}
	}
	// Only rounds in which nothing was lost, or none at all.
	if got, ok := r.Ratio("udp-64-loss", "muslin-vxlan", Baseline); ok {
		t.Errorf("divided by zero: %+v", got)
	}
	if got, ok := r.Ratio("tcp-1", "nebula", Baseline); ok {
		t.Errorf("a system that was not measured: %+v", got)
	}
}

func TestRatioIsNotOfMedians(t *testing.T) {
	r := &Results{}
	for round, pair := range [][2]float64{{1, 2}, {10, 5}, {4, 16}} {
		r.Samples = append(r.Samples,
			Sample{Round: round + 1, System: "a", Figure: "f", Value: pair[0]},
			Sample{Round: round + 1, System: "b", Figure: "f", Value: pair[1]})
	}
	// 0.5, 2 and 0.25; of the medians, 4 and 5, it would be 0.8.
	if got, _ := r.Ratio("f", "a", "b"); got != (Summary{0.5, 0.25, 2, 3}) {
		t.Errorf("%+v", got)
	}
}

func TestSummary(t *testing.T) {
	r := fakeResults()
	if got, ok := r.Summary("muslin-vxlan", "tcp-1"); !ok || got != (Summary{3, 1.8, 5, 3}) {
		t.Errorf("%+v, %v", got, ok)
	}
	if got, ok := r.Summary("muslin-vxlan", "cpu-machine"); ok {
		t.Errorf("not measured, yet %+v", got)
	}
}
