package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// MaxLoss is the share of what is sent that may be lost at a rate that counts as received.
const MaxLoss = 0.005

// What a search does within its time, in probes. The last one, which the result is taken from, is twice as long.
const (
	probesInTime = 20
	lastProbe    = 2
	reserve      = 2 * lastProbe // probes that are kept for the last one and its repetition
	lastTries    = 6
)

const (
	stepUp    = 1.4
	stepDown  = 1.5
	exact     = 1.04 // ratio of the lowest rate that fails and the highest that holds, which ends the search
	backOff   = 0.93 // for the next attempt, when a rate did not hold for longer
	saturated = 0.9  // of what is asked for: a sender that offers less is at its own limit
)

// HighestRate searches the highest rate at which at most MaxLoss is lost. It starts from what arrives when all is sent
// that can be, goes up or down from there until it has a rate that holds and one that does not, and halves the
// distance. A rate that seems not to hold is tried a second time, and the lowest of them once more in the end: what
// disturbed the machine for a moment may have cost it. The result is the outcome of a longer probe at the
// rate that was found, so it was really received; it fails when no rate holds.
//
// Where the sender could not offer more than what holds, the result says so: it is no figure of the system's then.
//
// probe is called some probesInTime times and gets the share of time that it may take.
func HighestRate(ctx context.Context, probe func(context.Context, Offer) (Outcome, error), t time.Duration) (
	Highest, error) {
	s := &search{probe: probe, time: t / probesInTime, left: probesInTime}
	full, err := s.offer(ctx, 0, 1)
	if err != nil {
		return Highest{}, err
	}
	if full.Sent == 0 || full.Received == 0 {
		return Highest{}, fmt.Errorf("of %d datagrams at full rate, none arrived", full.Sent)
	}
	if holds(full) {
		if out, err := s.offer(ctx, 0, lastProbe); err != nil || holds(out) {
			return Highest{out, true}, err
		}
	}
	s.fails = full.Offered()
	if err := s.bracket(ctx, full.Rate()); err != nil {
		return Highest{}, err
	}
	if err := s.halve(ctx); err != nil {
		return Highest{}, err
	}
	for s.left > reserve && !s.ceiling && s.fails < full.Offered() {
		failed := s.fails
		s.fails = full.Offered()
		if err := s.try(ctx, failed); err != nil {
			return Highest{}, err
		}
		if s.fails == failed {
			break
		}
		if err := errors.Join(s.climb(ctx), s.halve(ctx)); err != nil {
			return Highest{}, err
		}
	}
	rate := s.holds
	for range lastTries {
		for range 2 {
			if out, err := s.offer(ctx, rate, lastProbe); err != nil || holds(out) {
				return Highest{out, s.ceiling && rate == s.holds}, err
			}
		}
		rate *= backOff
	}
	return Highest{}, fmt.Errorf("no rate holds: even at %.0f datagrams/s more than %g %% are lost", rate/backOff,
		MaxLoss*100)
}

// A Highest is the outcome of a search.
type Highest struct {
	Outcome
	SendersLimit bool // all that the sender could offer held: the system might have carried more
}

// search is a search that goes on.
type search struct {
	probe func(context.Context, Offer) (Outcome, error)
	time  time.Duration // of one probe
	left  int           // probes

	holds, fails float64 // rates: the highest known to hold, the lowest known to fail; holds is 0 while there is none
	ceiling      bool    // the sender can't offer more than holds
}

func holds(o Outcome) bool { return o.Loss() <= MaxLoss && o.Received > 0 }

func (s *search) offer(ctx context.Context, rate float64, probes int) (Outcome, error) {
	s.left -= probes
	return s.probe(ctx, Offer{Rate: rate, Time: s.time * time.Duration(probes)})
}

// try finds out whether a rate holds. A sender that stays behind it twice has reached its own limit, which is the end
// of the search; once may be a moment's.
func (s *search) try(ctx context.Context, rate float64) error {
	behind := 0
	for range 2 {
		out, err := s.offer(ctx, rate, 1)
		switch {
		case err != nil:
			return err
		case holds(out) && out.Offered() >= rate*saturated:
			s.holds = max(s.holds, rate)
			return nil
		case holds(out):
			s.holds = max(s.holds, out.Offered())
			behind++
		}
	}
	s.fails = min(s.fails, rate)
	if behind == 2 {
		s.ceiling, s.fails = true, s.holds
	}
	return nil
}

// bracket goes on from a rate until one holds and one fails.
func (s *search) bracket(ctx context.Context, rate float64) error {
	if err := s.try(ctx, rate); err != nil {
		return err
	}
	for s.holds == 0 {
		if s.left <= reserve {
			// What is left decides: the last probe goes further down by itself.
			s.holds = s.fails / stepDown
			return nil
		}
		if err := s.try(ctx, s.fails/stepDown); err != nil {
			return err
		}
	}
	return s.climb(ctx)
}

// climb goes up from a rate that holds until one fails.
func (s *search) climb(ctx context.Context) error {
	for !s.ceiling && s.left > reserve && s.holds*stepUp < s.fails {
		before := s.fails
		if err := s.try(ctx, s.holds*stepUp); err != nil {
			return err
		}
		if s.fails < before {
			break
		}
	}
	return nil
}

// halve narrows the distance between the highest rate that holds and the lowest that fails.
func (s *search) halve(ctx context.Context) error {
	for s.left > reserve && s.fails > s.holds*exact {
		if err := s.try(ctx, math.Sqrt(s.holds*s.fails)); err != nil {
			return err
		}
	}
	return nil
}
