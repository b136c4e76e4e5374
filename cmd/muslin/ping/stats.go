package ping

import (
	"fmt"
	"slices"
	"time"
)

// Stats sums echoes up. Times are in microseconds; 0 without an answer.
type Stats struct {
	Sent       int     `json:"sent"`
	Received   int     `json:"received"`
	Duplicates int     `json:"duplicates"`
	Loss       float64 `json:"loss"` // 0 to 1
	Min        float64 `json:"rtt_min_us"`
	Avg        float64 `json:"rtt_avg_us"`
	Max        float64 `json:"rtt_max_us"`
	P50        float64 `json:"rtt_p50_us"`
	P99        float64 `json:"rtt_p99_us"`
	Jitter     float64 `json:"jitter_us"` // the mean difference between one round trip and the next
}

func summarize(all []Echo, again int) Stats {
	s := Stats{Duplicates: again}
	var times []float64
	sum, differences := 0.0, 0.0
	for i := range all {
		if all[i].Why == stopped {
			continue
		}
		s.Sent++
		if !all[i].answered() {
			continue
		}
		us := all[i].US
		if n := len(times); n > 0 {
			differences += max(us-times[n-1], times[n-1]-us)
		}
		times = append(times, us)
		sum += us
	}
	s.Received = len(times)
	if s.Sent > 0 {
		s.Loss = float64(s.Sent-s.Received) / float64(s.Sent)
	}
	if s.Received == 0 {
		return s
	}
	if s.Received > 1 {
		s.Jitter = differences / float64(s.Received-1)
	}
	slices.Sort(times)
	s.Min, s.Max, s.Avg = times[0], times[len(times)-1], sum/float64(len(times))
	s.P50, s.P99 = percentile(times, 50), percentile(times, 99)
	return s
}

// percentile is the least value that so many percent of the sorted ones do not exceed.
func percentile(sorted []float64, percent int) float64 {
	return sorted[(len(sorted)*percent+99)/100-1]
}

// ms is microseconds as text, in milliseconds.
func ms(us float64) string {
	switch d := us / 1000; {
	case d < 10:
		return fmt.Sprintf("%.2f", d)
	case d < 100:
		return fmt.Sprintf("%.1f", d)
	default:
		return fmt.Sprintf("%.0f", d)
	}
}

func percent(share float64) string {
	if share > 0 && share < 0.01 {
		return fmt.Sprintf("%.2f %%", 100*share)
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}

// sleep waits, unless ctx ends before: false.
func sleep(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-done:
		return false
	}
}
