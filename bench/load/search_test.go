package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// link is a simulated system between sender and receiver.
type link struct {
	capacity float64 // datagrams per second
	sender   float64 // what the sender can offer; 0: without a limit
	paced    float64 // the same for a sender that keeps to a rate
	collapse float64 // what each datagram beyond the capacity costs in received ones, as overload does to many systems
	floor    float64 // share that is lost at any rate
	jitter   float64 // of the capacity, from probe to probe
	hiccups  float64 // share of probes that lose 3 % for another reason
	rng      *rand.Rand

	used time.Duration
	log  []string
}

func (l *link) probe(_ context.Context, o Offer) (Outcome, error) {
	l.used += o.Time
	const most = 1e6
	offered := o.Rate
	if offered == 0 {
		offered = most
	}
	if l.sender > 0 {
		offered = min(offered, l.sender)
	}
	if l.paced > 0 && o.Rate > 0 {
		offered = min(offered, l.paced)
	}
	capacity := l.capacity * (1 + l.jitter*(2*l.rng.Float64()-1))
	received := offered * (1 - l.floor)
	if received > capacity {
		received = max(capacity-l.collapse*(offered-capacity), capacity/10)
	}
	if l.rng.Float64() < l.hiccups {
		received *= 0.97
	}
	s := o.Time.Seconds()
	out := Outcome{Sent: int(offered * s), Received: int(received * s), Took: o.Time}
	l.log = append(l.log, fmt.Sprintf("%.0f: %.2f %%", o.Rate, out.Loss()*100))
	return out, nil
}

func TestHighestRate(t *testing.T) {
	const budget = 12 * time.Second
	for name, c := range map[string]struct {
		link
		from, to float64 // of the capacity
		sender   bool    // its limit is found, not the link's
	}{
		"plain":                      {link{capacity: 100_000}, 0.95, 1.01, false},
		"slow":                       {link{capacity: 800}, 0.94, 1.01, false},
		"fast":                       {link{capacity: 900_000}, 0.95, 1.01, false},
		"sender is the limit":        {link{capacity: 200_000, sender: 150_000}, 0.74, 0.76, true},
		"paced sender is the limit":  {link{capacity: 200_000, paced: 150_000}, 0.74, 0.76, true},
		"collapses under overload":   {link{capacity: 100_000, collapse: 0.1}, 0.93, 1.01, false},
		"collapses altogether":       {link{capacity: 60_000, collapse: 5}, 0.85, 1.01, false},
		"trembles":                   {link{capacity: 100_000, jitter: 0.05}, 0.85, 1.06, false},
		"loses for another reason":   {link{capacity: 100_000, hiccups: 0.15}, 0.6, 1.01, false},
		"all at once":                {link{capacity: 70_000, collapse: 0.5, jitter: 0.04, hiccups: 0.1}, 0.6, 1.05, false},
		"loses a little at any rate": {link{capacity: 100_000, floor: 0.003}, 0.93, 1.01, false},
	} {
		for seed := range uint64(50) {
			l := c.link
			l.rng = rand.New(rand.NewPCG(seed, 1))
			out, err := HighestRate(t.Context(), l.probe, budget)
			if err != nil {
				t.Fatalf("%s, seed %d: %v after %q", name, seed, err, l.log)
			}
			if rate := out.Rate(); rate < c.from*l.capacity || rate > c.to*l.capacity {
				t.Errorf("%s, seed %d: %.0f received, want %.2f to %.2f of %.0f; probes %q", name, seed, rate, c.from, c.to,
					l.capacity, l.log)
			}
			if out.Loss() > MaxLoss || out.Took != lastProbe*budget/probesInTime {
				t.Errorf("%s, seed %d: the result %+v is not a long probe that held", name, seed, out)
			}
			if out.SendersLimit != c.sender {
				t.Errorf("%s, seed %d: the sender's limit: %v, want %v; probes %q", name, seed, out.SendersLimit, c.sender, l.log)
			}
			if l.used > budget*3/2 {
				t.Errorf("%s, seed %d: %v of traffic, more than half beyond %v; probes %q", name, seed, l.used, budget, l.log)
			}
		}
	}
}

func TestHighestRateFails(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for name, l := range map[string]*link{
		"loses too much at any rate": {capacity: 100_000, floor: 0.02, rng: rng},
		"carries nothing":            {rng: rng},
	} {
		if out, err := HighestRate(t.Context(), l.probe, time.Second); err == nil {
			t.Errorf("a link that %s: %+v", name, out)
		}
	}
	broken := errors.New("broken")
	for after := range 12 {
		n := 0
		l := &link{capacity: 50_000, collapse: 1, rng: rng}
		_, err := HighestRate(t.Context(), func(ctx context.Context, o Offer) (Outcome, error) {
			if n++; n > after {
				return Outcome{}, broken
			}
			return l.probe(ctx, o)
		}, time.Second)
		if !errors.Is(err, broken) || n != after+1 {
			t.Errorf("a probe that fails after %d: %v, %d probes", after, err, n)
		}
	}
}

func TestLoss(t *testing.T) {
	if l := (Outcome{}).Loss(); l != 1 {
		t.Errorf("loss of nothing sent is %v, want all", l)
	}
	if l := (Outcome{Sent: 1000, Received: 995}).Loss(); math.Abs(l-MaxLoss) > 1e-9 {
		t.Errorf("loss %v, want %v", l, MaxLoss)
	}
}
