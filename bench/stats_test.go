package bench

import "testing"

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Summary
	}{
		{[]float64{7}, Summary{7, 7, 7}},
		{[]float64{3, 1}, Summary{2, 1, 3}},
		{[]float64{9, 1, 2}, Summary{2, 1, 9}},
		{[]float64{4, 1, 3, 2}, Summary{2.5, 1, 4}},
	} {
		in := append([]float64(nil), c.values...)
		if got := Summarize(in); got != c.want {
			t.Errorf("Summarize(%v) = %v, want %v", c.values, got, c.want)
		}
		for i, v := range in {
			if v != c.values[i] {
				t.Errorf("Summarize changed its argument to %v", in)
			}
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		values []float64
		p      int
		want   float64
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{[]float64{5}, 99, 5}, {[]float64{1, 2, 3}, 50, 2}, {[]float64{1, 2, 3}, 99, 3},
	} {
		if got := Percentile(c.values, c.p); got != c.want {
			t.Errorf("Percentile(%d values, %d) = %v, want %v", len(c.values), c.p, got, c.want)
		}
	}
}
