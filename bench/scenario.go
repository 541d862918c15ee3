package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Metrics and their units.
const (
	metricRate     = "gbit_per_s"
	metricReceived = "received_pps"
	metricP50      = "p50_us"
	metricP99      = "p99_us"
	metricCPU      = "cpu_s_per_gb"
	metricRSS      = "rss_mib"
)

func unitOf(metric string) string {
	return map[string]string{
		metricRate: "Gbit/s", metricReceived: "packets/s", metricP50: "µs", metricP99: "µs",
		metricCPU: "s/GB", metricRSS: "MiB",
	}[metric]
}

// A figure is one metric of one round.
type figure struct {
	metric string
	value  float64
}

// A scenario measures a path.
type scenario struct {
	name string
	run  func(ctx context.Context, m measurement) ([]figure, error)
}

// A measurement is what a scenario is given.
type measurement struct {
	bed  *Bed
	path *Path
	wire string
	time time.Duration // of traffic
}

// scenarios lists all of them in the order of a round.
func scenarios() []scenario {
	return []scenario{
		tcp(1), tcp(4), tcp(16),
		{"udp-1400", udp},
		{"rtt-idle", rttIdle},
		{"rtt-load", rttLoad},
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

func tcp(streams int) scenario {
	return scenario{fmt.Sprintf("tcp-%d", streams), func(ctx context.Context, m measurement) ([]figure, error) {
		r, moved, err := m.send(ctx, iperfRun{streams: streams, time: m.time})
		if err != nil {
			return nil, err
		}
		figures := []figure{
			{metricRate, r.bytes * 8 / r.seconds / 1e9},
			{metricCPU, (moved.procSeconds + moved.irqSeconds + r.cpuSeconds) / (r.bytes / 1e9)},
		}
		if len(m.path.Procs) > 0 {
			rss, err := residentMiB(m.path.Procs)
			if err != nil {
				return nil, err
			}
			figures = append(figures, figure{metricRSS, rss})
		}
		return figures, nil
	}}
}

func udp(ctx context.Context, m measurement) ([]figure, error) {
	// 1,400 bytes with the headers of IPv4 and UDP would not fit the pods' MTU of 1,420 bytes, and be fragmented.
	r, _, err := m.send(ctx, iperfRun{streams: 1, udp: true, length: min(1400, m.bed.PodMTU()-28), time: m.time})
	if err != nil {
		return nil, err
	}
	return []figure{{metricReceived, r.packets / r.seconds}, {metricRate, r.bytes * 8 / r.seconds / 1e9}}, nil
}

// send runs iperf3 and checks that the traffic took the way it should.
func (m measurement) send(ctx context.Context, r iperfRun) (iperfResult, counters, error) {
	before, err := readCounters(m.bed, m.path)
	if err != nil {
		return iperfResult{}, counters{}, err
	}
	result, err := iperf(ctx, m.bed.Lab, m.path, r)
	if err != nil {
		return result, counters{}, err
	}
	after, err := readCounters(m.bed, m.path)
	if err != nil {
		return result, counters{}, err
	}
	moved := after.minus(before)
	return result, moved, checkCarried(m.bed, m.path, m.wire, moved, result.bytes)
}

// pingInterval is long enough for every queue and thread to have gone idle in between.
const pingInterval = 10 * time.Millisecond

func rttIdle(ctx context.Context, m measurement) ([]figure, error) {
	before, err := readCounters(m.bed, m.path)
	if err != nil {
		return nil, err
	}
	count := int(m.time / pingInterval)
	times, err := ping(ctx, m.path, pingRun{count: count, wanted: count})
	if err != nil {
		return nil, err
	}
	after, err := readCounters(m.bed, m.path)
	if err != nil {
		return nil, err
	}
	const size = 84 // bytes of ping's packet, with its IPv4 header
	if err := checkCarried(m.bed, m.path, m.wire, after.minus(before), float64(count*size)); err != nil {
		return nil, err
	}
	return []figure{{metricP50, Percentile(times, 50)}, {metricP99, Percentile(times, 99)}}, nil
}

// loadLead is how long the load of rttLoad has run before the first echo request, and runs on after the last.
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
	return []figure{{metricP50, Percentile(times, 50)}, {metricP99, Percentile(times, 99)}}, nil
}

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
