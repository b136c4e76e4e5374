package compare

import "slices"

// Baseline is the system that all others are compared with: the kernel's VXLAN as flannel sets it up.
const Baseline = "kernel-vxlan"

// Summary is what a figure's rounds come to.
type Summary struct {
	Median, Low, High float64
	Rounds            int // that gave a value
}

// summarize reports false if there is no value.
func summarize(values []float64) (Summary, bool) {
	if len(values) == 0 {
		return Summary{}, false
	}
	values = slices.Sorted(slices.Values(values))
	half := len(values) / 2
	s := Summary{Median: values[half], Low: values[0], High: values[len(values)-1], Rounds: len(values)}
	if len(values)%2 == 0 {
		s.Median = (values[half-1] + values[half]) / 2
	}
	return s, true
}

// rounds are the values of a figure, by round.
func (r *Results) rounds(system, figure string) map[int]float64 {
	values := make(map[int]float64)
	for _, s := range r.Samples {
		if s.System == system && s.Figure == figure {
			values[s.Round] = s.Value
		}
	}
	return values
}

// Summary is the figure over all rounds. It reports false where nothing was measured.
func (r *Results) Summary(system, figure string) (Summary, bool) {
	var values []float64
	for _, v := range r.rounds(system, figure) {
		values = append(values, v)
	}
	return summarize(values)
}

// Ratio is a system's figure divided by another's of the same round, over all rounds that have both. It
// reports false where there is none.
func (r *Results) Ratio(figure, system, against string) (Summary, bool) {
	divisors := r.rounds(against, figure)
	var ratios []float64
	for round, v := range r.rounds(system, figure) {
		if d, ok := divisors[round]; ok && d != 0 {
			ratios = append(ratios, v/d)
		}
	}
	return summarize(ratios)
}
