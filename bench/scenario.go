package bench

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Metrics and their units.
const (
	metricRate     = "gbit_per_s"
	metricReceived = "received_pps"
	metricP50      = "p50_us"
	metricP99      = "p99_us"
	metricConns    = "conns_per_s"
	metricCPU      = "cpu_s_per_gb"
	metricRSS      = "rss_mib"
	metricFlood    = "flood_pps" // hostile datagrams that arrived
	metricCNI      = "cni_ms"    // ADD and DEL
	metricAdd      = "cni_add_ms"
	metricDel      = "cni_del_ms"
)

func unitOf(metric string) string {
	return map[string]string{
		metricRate: "Gbit/s", metricReceived: "packets/s", metricP50: "µs", metricP99: "µs",
		metricConns: "connections/s", metricCPU: "s/GB", metricRSS: "MiB",
		metricFlood: "packets/s", metricCNI: "ms", metricAdd: "ms", metricDel: "ms",
	}[metric]
}

// A figure is one metric of one round.
type figure struct {
	metric string
	value  float64
}

// A scenario measures a path.
type scenario struct {
	name  string
	time  time.Duration // of traffic, when nothing else is said
	run   func(ctx context.Context, m measurement) ([]figure, error)
	about Subject
}

// on says whether the scenario has a meaning for a system.
func (s scenario) on(system System) bool { return slices.Contains(system.Subjects(), s.about) }

// A measurement is what a scenario is given.
type measurement struct {
	bed  *Bed
	path *Path
	wire string
	time time.Duration // of traffic
	note func(format string, args ...any)

	// sendersLimit notes that the figure of a metric is what the generator could offer: the system might do better.
	sendersLimit func(metric string)

	congestionControl string
}

// scenarios lists all of them in the order of a round.
func scenarios() []scenario {
	const short, long, search = 3 * time.Second, 4 * time.Second, 10 * time.Second
	return []scenario{
		tcp(calmScenario, 1, forward, long), {name: floodScenario, time: long, run: flooded, about: AboutHandshakes},
		tcp("tcp-4", 4, forward, long), tcp("tcp-16", 16, forward, long),
		tcp("tcp-1-reverse", 1, reverse, short), tcp("tcp-4-reverse", 4, reverse, short),
		tcp("tcp-16-reverse", 16, reverse, short),
		tcp("tcp-1-bidir", 1, both, short), tcp("tcp-4-bidir", 4, both, long), tcp("tcp-16-bidir", 16, both, short),
		{name: "udp-1400", time: short, run: udp1400},
		{name: "udp-64", time: search, run: udp64},
		{name: "rtt-idle", time: long, run: rttIdle},
		{name: "rtt-load", time: long, run: rttLoad},
		{name: "connect", time: short, run: connect},
		{name: "flows-1000", time: long, run: manyFlows},
		{name: "same-node", time: long, run: sameNode, about: AboutNode},
		{name: "cni", time: long, run: attachPods, about: AboutPlugin},
	}
}

// ScenarioNames lists the scenarios.
func ScenarioNames() []string {
	var names []string
	for _, s := range scenarios() {
		names = append(names, s.name)
	}
	return names
}

func tcp(name string, streams int, d direction, long time.Duration) scenario {
	run := func(ctx context.Context, m measurement) ([]figure, error) {
		r, moved, err := m.send(ctx, iperfRun{streams: streams, direction: d, time: m.time})
		if err != nil {
			return nil, err
		}
		return m.tcpFigures(r, moved)
	}
	return scenario{name: name, time: long, run: run}
}

// tcpFigures are the rate of what arrived, in both directions together, and what it took.
func (m measurement) tcpFigures(r iperfResult, moved counters) ([]figure, error) {
	figures := []figure{
		{metricRate, r.bytes() * 8 / r.seconds / 1e9},
		{metricCPU, moved.busySeconds / (r.bytes() / 1e9)},
	}
	if len(m.path.Procs) > 0 {
		rss, err := residentMiB(m.path.Procs)
		if err != nil {
			return nil, err
		}
		figures = append(figures, figure{metricRSS, rss})
	}
	return figures, nil
}

// sameNode sends between two pods of the first node.
func sameNode(ctx context.Context, m measurement) ([]figure, error) {
	var r iperfResult
	moved, err := m.watch(func() (err error) {
		r, err = iperf(ctx, m.bed.Lab, iperfRun{from: m.path.Ends[0], to: *m.path.Neighbour, streams: 1, time: m.time,
			congestionControl: m.congestionControl})
		return err
	})
	if err == nil {
		err = checkNear(m.bed, m.path, moved, r.bytes())
	}
	if err != nil {
		return nil, err
	}
	return m.tcpFigures(r, moved)
}

// UDPPayload is how many bytes a datagram of udp-1400 carries behind the header of UDP: 1,400, unless the wire's MTU
// leaves the pods less.
func (b *Bed) UDPPayload() int {
	const payload = 1400
	return min(payload, b.PodMTU()-udpHeaders)
}

func udp1400(ctx context.Context, m measurement) ([]figure, error) {
	r, _, err := m.send(ctx, iperfRun{streams: 1, udp: true, length: m.bed.UDPPayload(), time: m.time})
	if err != nil {
		return nil, err
	}
	return []figure{{metricReceived, r.packets / r.seconds}, {metricRate, r.bytes() * 8 / r.seconds / 1e9}}, nil
}

// watch returns what the counters moved while f ran.
func (m measurement) watch(f func() error) (counters, error) {
	before, err := readCounters(m.bed, m.path)
	if err != nil {
		return counters{}, err
	}
	if err := f(); err != nil {
		return counters{}, err
	}
	after, err := readCounters(m.bed, m.path)
	return after.minus(before), err
}

// carry runs f, which returns what arrived, and checks that it took the way it should.
func (m measurement) carry(f func() ([]delivery, error)) (counters, error) {
	var arrived []delivery
	moved, err := m.watch(func() (err error) {
		arrived, err = f()
		return err
	})
	if err != nil {
		return moved, err
	}
	return moved, checkCarried(m.bed, m.path, m.wire, moved, arrived...)
}

// send runs iperf3 between the two ends of the path.
func (m measurement) send(ctx context.Context, r iperfRun) (result iperfResult, moved counters, err error) {
	r.from, r.to, r.congestionControl = m.path.Ends[0], m.path.Ends[1], m.congestionControl
	moved, err = m.carry(func() (arrived []delivery, err error) {
		result, err = iperf(ctx, m.bed.Lab, r)
		if r.direction != reverse {
			arrived = append(arrived, delivery{0, result.forward})
		}
		if r.direction != forward {
			arrived = append(arrived, delivery{1, result.reverse})
		}
		return arrived, err
	})
	return result, moved, err
}

func rttIdle(ctx context.Context, m measurement) ([]figure, error) {
	var times []float64
	_, err := m.carry(func() (_ []delivery, err error) {
		count := int(m.time / pingInterval)
		times, err = ping(ctx, m.path, pingRun{count: count, wanted: count})
		const size = 84 // bytes of ping's packet, with its IPv4 header
		return []delivery{{0, float64(count * size)}, {1, float64(count * size)}}, err
	})
	if err != nil {
		return nil, err
	}
	return roundTrips(times), nil
}

func roundTrips(times []float64) []figure {
	return []figure{{metricP50, Percentile(times, 50)}, {metricP99, Percentile(times, 99)}}
}

// loadLead is how long the load of rttLoad has run before the first echo request, and runs on after the last at least.
const loadLead = 300 * time.Millisecond

// rttLoad pings beside four TCP streams at full speed. Echo requests that a full queue drops have no round trip.
func rttLoad(ctx context.Context, m measurement) ([]figure, error) {
	load := make(chan error, 1)
	go func() {
		_, _, err := m.send(ctx, iperfRun{streams: 4, time: m.time + 2*loadLead})
		load <- err
	}()
	time.Sleep(loadLead)
	count := int(m.time / pingInterval)
	times, err := ping(ctx, m.path, pingRun{count: count, wanted: count / 2})
	if loadErr := <-load; loadErr != nil {
		return nil, fmt.Errorf("the load: %w", loadErr)
	}
	if err != nil {
		return nil, err
	}
	return roundTrips(times), nil
}
