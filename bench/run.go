package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A Config says what a run measures.
type Config struct {
	Systems   []System
	Wires     []string
	Scenarios []string
	Rounds    int
	Time      time.Duration // of traffic in each measurement; 0: each scenario's own
	MTU       int           // bytes, of the wire; 0: 1500
	Prefix    string        // of the labs; the system's number is appended
	Progress  io.Writer

	// CongestionControl is that of the pods' TCP; empty: the machine's default.
	CongestionControl string
}

// enoughRounds is how many rounds a median needs at least for one of them to be disturbed.
const enoughRounds = 3

// runner is a run that goes on.
type runner struct {
	Config
	scenarios []scenario
	results   *results
	progress  *progress
	failures  []string
	notes     []string
}

// entrant is a system that is up.
type entrant struct {
	System
	bed  *Bed
	path *Path
}

// Run measures. It returns a report whenever anything could be measured; the error says that the context ended or that
// a measurement failed, which the report's Failures list.
func Run(ctx context.Context, c Config) (*Report, error) {
	if c.MTU == 0 {
		c.MTU = lab.DefaultMTU
	}
	r := &runner{Config: c, results: newResults(), progress: newProgress(c.Progress)}
	if err := r.choose(); err != nil {
		return nil, err
	}
	for _, s := range r.Systems {
		r.progress.say("preparing %s", s.Name())
		if err := s.Prepare(ctx); err != nil {
			return nil, fmt.Errorf("preparing %s: %w", s.Name(), err)
		}
		if d, ok := s.(Describer); ok {
			r.progress.say("it is %s", d.Program())
		}
	}
	if r.Rounds < enoughRounds {
		r.note("%d of the %d rounds that a figure needs: one that was disturbed decides here, and a goal that is reached "+
			"proves nothing", r.Rounds, enoughRounds)
	}
	r.progress.begin = time.Now()
	r.expect()
	r.progress.say("%d measurements, about %s", r.progress.all(), about(r.estimate()))
	for _, wire := range c.Wires {
		if err := r.measureWire(ctx, wire); err != nil {
			r.fail("%s: %v", wire, err)
		}
	}
	r.notes = append(r.notes, r.results.sendersLimits()...)
	report := &Report{Rows: r.results.rows(), Ratios: r.results.ratios(), Within: r.results.within(),
		Failures: r.failures, Notes: r.notes, Machine: r.machine()}
	if err := ctx.Err(); err != nil {
		return report, fmt.Errorf("the run was interrupted: %w", err)
	}
	if n := len(r.failures); n > 0 {
		return report, fmt.Errorf("%d failed, the first: %s", n, r.failures[0])
	}
	return report, nil
}

func (r *runner) choose() error {
	if r.Rounds < 1 || r.Time < 0 || len(r.Systems) == 0 || len(r.Wires) == 0 {
		return fmt.Errorf("nothing to measure: %d rounds of %v, %d systems, %d wires", r.Rounds, r.Time, len(r.Systems),
			len(r.Wires))
	}
	all := make(map[string]scenario)
	for _, s := range scenarios() {
		all[s.name] = s
	}
	for _, name := range r.Scenarios {
		s, ok := all[name]
		if !ok {
			return fmt.Errorf("no scenario %q: there are %s", name, strings.Join(ScenarioNames(), ", "))
		}
		if r.Time != 0 {
			s.time = r.Time
		}
		r.scenarios = append(r.scenarios, s)
	}
	// What has a part in none of the scenarios is not even built.
	r.Systems = slices.DeleteFunc(slices.Clone(r.Systems), func(system System) bool {
		return !slices.ContainsFunc(r.scenarios, func(s scenario) bool { return s.on(system) })
	})
	if len(r.Systems) == 0 {
		return fmt.Errorf("none of the systems has a part in %s", strings.Join(r.Scenarios, ", "))
	}
	var err error
	r.CongestionControl, err = chooseCongestionControl(r.CongestionControl)
	return err
}

func (r *runner) fail(format string, args ...any) {
	f := fmt.Sprintf(format, args...)
	r.failures = append(r.failures, f)
	r.progress.say("FAIL %s", f)
}

// measureWire brings every system up once and then goes round: what disturbs the machine for a while disturbs all.
func (r *runner) measureWire(ctx context.Context, wire string) (err error) {
	var up []*entrant
	defer func() {
		for _, e := range up {
			err = errors.Join(err, e.bed.Close())
		}
	}()
	for i, s := range r.Systems {
		if ctx.Err() != nil {
			return nil
		}
		e, err := r.bringUp(ctx, s, BedOptions{
			Prefix: fmt.Sprintf("%s%d", r.Prefix, i), Wire: wire, MTU: r.MTU,
		})
		if err != nil {
			r.fail("%s, %s: %v", s.Name(), wire, err)
			r.skip(s)
			continue
		}
		up = append(up, e)
		r.progress.say("%s is up on the %s wire, its path proven", s.Name(), wire)
	}
	for round := range r.Rounds {
		for _, scenario := range r.scenarios {
			for i := range up {
				if ctx.Err() != nil {
					return nil
				}
				e := up[(i+round)%len(up)]
				if scenario.on(e) {
					r.measure(ctx, e, scenario, place{wire, round})
				} else if round == 0 && scenario.about == AboutNode && slices.Contains(e.Subjects(), AboutNodes) {
					r.note("%s: not applicable to %s, which has no part in it", scenario.name, e.Name())
				}
			}
		}
	}
	// What encapsulated at first must still do so in the end.
	for _, e := range up {
		if err := e.prove(ctx); err != nil && ctx.Err() == nil {
			r.fail("%s, %s, after the last round: %v", e.Name(), wire, err)
		}
	}
	return nil
}

// Needs lists what the systems that take part execute, as Needer does.
func (c Config) Needs() ([]string, error) {
	r := &runner{Config: c, progress: newProgress(nil)}
	if err := r.choose(); err != nil {
		return nil, err
	}
	var needs []string
	for _, s := range r.Systems {
		if n, ok := s.(Needer); ok {
			needs = append(needs, n.Needs()...)
		}
	}
	return needs, nil
}

// expect counts the measurements that are to come.
func (r *runner) expect() {
	for _, s := range r.scenarios {
		for _, system := range r.Systems {
			if s.on(system) {
				r.progress.pending[s.name] += len(r.Wires) * r.Rounds
			}
		}
	}
}

// skip takes a system's measurements on one wire out of what is to come.
func (r *runner) skip(system System) {
	for _, s := range r.scenarios {
		if s.on(system) {
			r.progress.pending[s.name] -= r.Rounds
		}
	}
}

// bringUp is about what it takes to bring a system up on a wire, and to prove its path before and after.
const bringUp = 2 * time.Second

func (r *runner) estimate() time.Duration {
	return r.progress.left(r.scenarios) + time.Duration(len(r.Systems)*len(r.Wires))*bringUp
}

// Estimate is about how long a run takes, without the time to build what it measures.
func (c Config) Estimate() (time.Duration, error) {
	r := &runner{Config: c, progress: newProgress(nil)}
	if err := r.choose(); err != nil {
		return 0, err
	}
	r.expect()
	return r.estimate(), nil
}

func (r *runner) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

// place is where in a run a measurement stands.
type place struct {
	wire  string
	round int
}

func (r *runner) bringUp(ctx context.Context, s System, o BedOptions) (*entrant, error) {
	bed, err := NewBed(ctx, o)
	if err != nil {
		return nil, err
	}
	e := &entrant{System: s, bed: bed}
	if e.path, err = s.Up(ctx, bed); err == nil {
		err = e.prove(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, bed.Close())
	}
	return e, nil
}

// prove makes sure that what is to join nodes does, and encapsulates.
func (e *entrant) prove(ctx context.Context) error {
	if !slices.Contains(e.Subjects(), AboutNodes) {
		return nil
	}
	return prove(ctx, e.bed, e.path)
}

func (r *runner) measure(ctx context.Context, e *entrant, s scenario, at place) {
	begin := time.Now()
	what := fmt.Sprintf("%s, %s, %s, round %d", e.Name(), at.wire, s.name, at.round+1)
	figures, err := s.run(ctx, measurement{bed: e.bed, path: e.path, wire: at.wire, time: s.time,
		congestionControl: r.CongestionControl,
		note:              func(format string, args ...any) { r.note("%s: %s", what, fmt.Sprintf(format, args...)) },
		sendersLimit:      func(metric string) { r.results.limited[series{e.Name(), at.wire, s.name, metric}]++ }})
	r.progress.measured(s.name, time.Since(begin))
	if ctx.Err() != nil {
		return
	}
	// That another system can't do something is a result; of Warren it is a defect.
	if errors.Is(err, errUnable) && !strings.HasPrefix(e.Name(), "warren-") {
		r.note("%s: no figure: %v", what, err)
		return
	}
	if err != nil {
		r.fail("%s: %v", what, err)
		return
	}
	var shown []string
	for _, f := range figures {
		r.results.add(series{e.Name(), at.wire, s.name, f.metric}, at.round, f.value)
		shown = append(shown, number(f.value)+" "+unitOf(f.metric))
	}
	r.progress.say("%d/%d, %s left  %s: %s", r.progress.done, r.progress.all(), about(r.progress.left(r.scenarios)), what,
		strings.Join(shown, ", "))
}

// Describer is a System that can say which program it measures.
type Describer interface{ Program() string }
