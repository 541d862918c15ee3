package bench

import "slices"

// A Summary is what several rounds of one figure say.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Summarize takes the figures of all rounds, at least one. The median of an even number of figures is the mean of the
// two in the middle.
func Summarize(values []float64) Summary {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return Summary{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1]}
}

// Percentile is the smallest of the figures that at least p percent of them don't exceed (nearest rank).
func Percentile(values []float64, p int) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[max(0, (len(s)*p+99)/100-1)]
}
