package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// pingInterval is long enough for every queue and thread to have gone idle in between.
const pingInterval = 10 * time.Millisecond

// pingRun says how many echo requests are sent, and how many have to be answered.
type pingRun struct{ count, wanted int }

// ping returns the round trips in microseconds from the first end to the second.
func ping(ctx context.Context, p *Path, r pingRun) ([]float64, error) {
	out, err := p.Ends[0].NS.Run(ctx, "ping", "-n", "-c", strconv.Itoa(r.count), "-W", "1",
		"-i", strconv.FormatFloat(pingInterval.Seconds(), 'f', -1, 64), p.Ends[1].Addr.String())
	if err != nil {
		return nil, err
	}
	return parsePing(out, r)
}

func parsePing(out string, r pingRun) ([]float64, error) {
	var times []float64
	for _, m := range regexp.MustCompile(`time=([\d.]+) ms`).FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, fmt.Errorf("round trip %q: %w", m[0], err)
		}
		times = append(times, ms*1000)
	}
	if len(times) == 0 || len(times) < r.wanted {
		return nil, fmt.Errorf("ping: %d of %d echo requests were answered, %d were to be", len(times), r.count, r.wanted)
	}
	return times, nil
}
