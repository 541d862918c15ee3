package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/warren-net/warren/internal/lab"
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
	times, err := ping(ctx, m.path.Ends[0].NS, m.path.Ends[1], count)
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

// ping returns the round trips in microseconds; it is an error when one is missing.
func ping(ctx context.Context, from *lab.NS, to End, count int) ([]float64, error) {
	out, err := from.Run(ctx, "ping", "-n", "-c", strconv.Itoa(count), "-W", "1",
		"-i", strconv.FormatFloat(pingInterval.Seconds(), 'f', -1, 64), to.Addr.String())
	if err != nil {
		return nil, err
	}
	return parsePing(out, count)
}

func parsePing(out string, count int) ([]float64, error) {
	var times []float64
	for _, m := range regexp.MustCompile(`time=([\d.]+) ms`).FindAllStringSubmatch(out, -1) {
		ms, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, fmt.Errorf("round trip %q: %w", m[0], err)
		}
		times = append(times, ms*1000)
	}
	if len(times) != count {
		return nil, fmt.Errorf("ping: %d of %d echo requests were answered", len(times), count)
	}
	return times, nil
}
