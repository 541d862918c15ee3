package soak

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// A measure is one of a daemon's figures that must not grow, by the name that its metrics have for it.
type measure struct {
	metric, name string
	unit         float64 // that a shown number is divided by
	// May grow from the second quarter to the last by this share and this much: the heap breathes with the collector,
	// and the kernel takes pages back when it likes.
	share, much float64
}

// The measures, and the metrics for the rest.
const (
	mib        = 1 << 20
	cpuMetric  = "process_cpu_seconds_total"
	goroutines = "go_goroutines"
	openFDs    = "process_open_fds"
)

func measures() []measure {
	return []measure{
		{metric: "process_resident_memory_bytes", name: "resident MiB", unit: mib, share: 0.10, much: 3 * mib},
		{metric: "go_memstats_heap_alloc_bytes", name: "heap MiB", unit: mib, share: 0.15, much: 1 * mib},
		// A few threads more bring some of this; a goroutine that stays for ever shows among the goroutines.
		{metric: "go_memstats_stack_inuse_bytes", name: "stacks MiB", unit: mib, share: 0.10, much: 2 * mib},
		{metric: goroutines, name: "goroutines", unit: 1, much: 2},
		{metric: "go_threads", name: "threads", unit: 1, much: 2},
		{metric: openFDs, name: "descriptors", unit: 1, much: 2},
	}
}

// figures are what a daemon says of itself.
type figures map[string]float64

// A sampler reads the daemons.
type sampler struct {
	r       *run
	clients [members]*http.Client
	apis    [members]*api.Client

	mu      sync.Mutex
	samples [members][]sample
	drops   [members]map[string]uint64 // of daemons that were killed since
	last    [members]map[string]uint64 // of the one that runs, when it was asked last
	cpu     [members]float64           // seconds, of daemons that were killed since
}

type sample struct {
	at time.Duration // since the load began
	figures
}

func newSampler(r *run) *sampler {
	s := &sampler{r: r}
	for i, n := range r.nodes {
		s.clients[i] = metricsClient(n.NS)
		s.apis[i] = api.NewClient(filepath.Join(n.RunDir, "warren.sock"))
		s.drops[i] = map[string]uint64{}
	}
	return s
}

// metricsClient asks a daemon in a namespace. It keeps no connection, which would count as the daemon's.
func metricsClient(ns *lab.NS) *http.Client {
	const timeout = 5 * time.Second
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return ns.Dial(ctx, address)
		},
	}}
}

// read asks one daemon for its figures.
func (s *sampler) read(ctx context.Context, node int) (figures, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.clients[node].Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of node %s: %w", s.r.nodes[node].Name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of node %s: %s", s.r.nodes[node].Name, resp.Status)
	}
	return parseMetrics(resp.Body)
}

// parseMetrics reads the metrics without labels, in Prometheus' text format: a name, a value, maybe a time.
func parseMetrics(in io.Reader) (figures, error) {
	f := figures{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] == "#" || strings.ContainsRune(fields[0], '{') {
			continue
		}
		v, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", fields[0], err)
		}
		f[fields[0]] = v
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	for _, m := range measures() {
		if _, ok := f[m.metric]; !ok {
			return nil, fmt.Errorf("the daemon has no metric %s", m.metric)
		}
	}
	return f, nil
}

// watch takes samples for so long.
func (s *sampler) watch(ctx context.Context, d time.Duration) {
	const often, seldom, count = 500 * time.Millisecond, 5 * time.Second, 120
	every := min(seldom, max(often, d/count))
	tick := time.NewTicker(every)
	defer tick.Stop()
	news := time.NewTicker(max(10*time.Second, d/30))
	defer news.Stop()
	end := time.After(d)
	for {
		select {
		case <-tick.C:
			for node := range s.r.nodes {
				s.sample(ctx, node)
			}
		case <-news.C:
			s.r.say("%s", s.news())
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *sampler) sample(ctx context.Context, node int) {
	asked := time.Now()
	f, err := s.read(ctx, node)
	if err != nil {
		if !s.r.trouble.met(s.r.pods[node], asked) && ctx.Err() == nil {
			s.r.fail("%v", err)
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples[node] = append(s.samples[node], sample{time.Since(s.r.begin), f})
}

// keep remembers what a daemon counted before it is killed.
func (s *sampler) keep(ctx context.Context, node int) {
	drops, err := s.askDrops(ctx, node)
	if err != nil {
		s.r.broke(ctx, "drops before a kill", err)
		return
	}
	f, err := s.read(ctx, node)
	if err != nil {
		s.r.broke(ctx, "metrics before a kill", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cpu[node] += f[cpuMetric]
	for reason, n := range drops {
		s.drops[node][reason] += n
	}
}

func (s *sampler) askDrops(ctx context.Context, node int) (map[string]uint64, error) {
	drops, err := s.apis[node].Drops(ctx)
	if err != nil {
		return nil, fmt.Errorf("drops of node %s: %w", s.r.nodes[node].Name, err)
	}
	m := make(map[string]uint64, len(drops))
	for _, d := range drops {
		m[d.Reason] = d.Count
	}
	return m, nil
}

// allFigures are those of all nodes at one time.
type allFigures [members]figures

func (a *allFigures) String() string {
	var parts []string
	for _, m := range measures() {
		var values []string
		for _, f := range a {
			values = append(values, strconv.FormatFloat(f[m.metric]/m.unit, 'f', 0, 64))
		}
		parts = append(parts, m.name+" "+strings.Join(values, " "))
	}
	return strings.Join(parts, ", ")
}

// settled reads the figures of idle daemons: without earlier ones when they have not changed for a second, and with
// them when no more goroutines and descriptors than then are left, or after some seconds.
func (s *sampler) settled(ctx context.Context, earlier *allFigures) (*allFigures, error) {
	const step, most = time.Second, 15
	var last *allFigures
	for range most {
		var now allFigures
		for node := range s.r.nodes {
			f, err := s.read(ctx, node)
			if err != nil {
				return nil, err
			}
			drops, err := s.askDrops(ctx, node)
			if err != nil {
				return nil, err
			}
			now[node] = f
			s.mu.Lock()
			s.last[node] = drops
			s.mu.Unlock()
		}
		if earlier == nil && last != nil && now.noMoreThan(last) || earlier != nil && now.noMoreThan(earlier) {
			return &now, nil
		}
		last = &now
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return last, nil
}

// noMoreThan compares goroutines and descriptors.
func (a *allFigures) noMoreThan(b *allFigures) bool {
	for node := range a {
		for _, metric := range []string{goroutines, openFDs} {
			if a[node][metric] > b[node][metric] {
				return false
			}
		}
	}
	return true
}

// news are the last samples and what was done so far.
func (s *sampler) news() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now allFigures
	for node, all := range s.samples {
		if len(all) > 0 {
			now[node] = all[len(all)-1].figures
		}
	}
	return now.String()
}
