// Package metrics shows a node to Prometheus. It counts nothing itself: at a scrape it asks the same api.Source that
// answers the command line, which adds up the workers' counters, so that the packet path pays nothing for it.
package metrics

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/warren-net/warren/node/api"
)

// Handler serves the metrics of src from a registry of its own.
func Handler(src api.Source) (http.Handler, error) {
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{newCollector(src), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux, nil
}

// Listen opens the metrics' address, HOST:PORT.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("metrics: %s is in use by another program; choose another address in `metrics`: %w", address,
			err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("metrics: this host has no address %s; choose another in `metrics`: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("metrics: no permission to listen on %s; choose a port of 1024 or more: %w", address, err)
	case err != nil:
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return l, nil
}

// A collector turns a node's answers into metrics.
type collector struct {
	src   api.Source
	descs map[string]*prometheus.Desc
}

// specs are the metrics and their labels. Counters end in _total.
var specs = [...]struct {
	name, help string
	labels     []string
}{
	{"info", "Always 1; what runs here.", []string{"node", "version", "encapsulation"}},
	{"packets_total", "Segments, as they cross the wire, by direction (tx: to peers, rx: from peers).",
		[]string{"direction"}},
	{"bytes_total", "Inner IP bytes by direction (tx: to peers, rx: from peers).", []string{"direction"}},
	{"superpackets_total", "Superpackets by direction (tx, rx; local: between pods of this node; outside: to the kernel).",
		[]string{"direction"}},
	{"whole_superpackets_total", "Superpackets to peers that left uncut (sent), or were to and did not (refused).",
		[]string{"outcome"}},
	{"superframes_total", "Superpackets encrypted as one (tx), and decrypted (rx).", []string{"direction"}},
	{"device_reads_total", "Superpackets read from the device.", nil},
	{"device_writes_total", "Superpackets written to the device.", nil},
	{"send_calls_total", "System calls that sent to peers.", nil},
	{"wakeups_total", "Times that a worker had nothing to do and waited.", []string{"worker"}},
	{"pauses_total", "Times that a worker paused before, so that more would come (moderation).", []string{"worker"}},
	{"lanes_given_total", "Times that a worker gave a lane to another one (express).", []string{"worker"}},
	{"flows_moved_total", "Times that a worker had small flows leave the lane of a large one.", []string{"worker"}},
	{"drops_total", "Dropped packets by reason.", []string{"reason"}},
	{"icmp_sent_total", "ICMP errors made.", nil},
	{"icmp_rate_limited_total", "ICMP errors not made because of the rate limit.", nil},
	{"offload_enabled", "1 when the offload is in use.", []string{"offload"}},
	{"snapshot_generation", "Number of the forwarding state in force.", nil},
	{"snapshot_timestamp_seconds", "When the forwarding state in force was published, Unix time.", nil},
	{"peers", "Other nodes known.", nil},
	{"routes", "Entries of the forwarding table.", nil},
	{"device_mtu_bytes", "MTU of the device and of the pods.", nil},
	{"underlay_mtu_bytes", "MTU of the underlay device that holds the address.", []string{"address", "device"}},
	{"warnings", "Warnings that `warren status` shows.", nil},
	{"last_reload_successful", "1 when the last reading of the configuration was applied in full.", nil},
	{"last_reload_timestamp_seconds", "When the configuration was last read again, Unix time.", nil},
	{"peer_packets_total", "Segments by peer and direction.", []string{"peer", "direction"}},
	{"peer_bytes_total", "Inner IP bytes by peer and direction.", []string{"peer", "direction"}},
	{"peer_mtu_bytes", "The largest inner packet that the path to the peer carries.", []string{"peer"}},
	{"handshakes_total", "What the encrypted tunnel did and met beside data, by kind.", []string{"kind"}},
	{"peer_superframes", "1 when superpackets are encrypted to the peer as one.", []string{"peer"}},
	{"peer_superframes_paused", "1 when the peer was asked to send none, as pieces of them are lost.", []string{"peer"}},
	{"peer_session", "1 when there are keys to encrypt with.", []string{"peer"}},
	{"peer_last_handshake_timestamp_seconds", "When the last key exchange with the peer was completed, Unix time.",
		[]string{"peer"}},
	{"peer_last_seen_timestamp_seconds", "When the peer's last datagram was accepted, Unix time.", []string{"peer"}},
}

func newCollector(src api.Source) *collector {
	c := &collector{src: src, descs: make(map[string]*prometheus.Desc, len(specs))}
	for _, s := range specs {
		c.descs[s.name] = prometheus.NewDesc("warren_"+s.name, s.help, s.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, s := range specs {
		ch <- c.descs[s.name]
	}
}

// An out writes metrics of one scrape.
type out struct {
	c  *collector
	ch chan<- prometheus.Metric
}

func (o out) counter(name string, v uint64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.c.descs[name], prometheus.CounterValue, float64(v), labels...)
}

func (o out) gauge(name string, v float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(o.c.descs[name], prometheus.GaugeValue, v, labels...)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out{c, ch}
	s := c.src.Status()
	o.gauge("info", 1, s.Node, s.Version, s.Tunnel.Encapsulation)
	o.workers(s.Workers)
	for _, f := range s.Offloads {
		o.gauge("offload_enabled", flag(f.Enabled), f.Name)
	}
	o.gauge("snapshot_generation", float64(s.Snapshot.Generation))
	o.gauge("snapshot_timestamp_seconds", float64(s.Snapshot.Since.Unix()))
	o.gauge("peers", float64(s.Snapshot.Peers))
	o.gauge("routes", float64(s.Snapshot.Routes))
	o.gauge("device_mtu_bytes", float64(s.Device.MTU))
	for _, u := range s.Tunnel.Underlay {
		// An interface's name is any bytes, a label's value is text: otherwise the whole scrape fails.
		o.gauge("underlay_mtu_bytes", float64(u.MTU), u.Address.String(), strings.ToValidUTF8(u.Device, "?"))
	}
	o.gauge("warnings", float64(len(s.Warnings)))
	o.gauge("last_reload_successful", flag(s.LastReload == nil || s.LastReload.Error+s.LastReload.Incomplete == ""))
	if s.LastReload != nil {
		o.gauge("last_reload_timestamp_seconds", float64(s.LastReload.Time.Unix()))
	}
	for kind, v := range s.Tunnel.Handshakes {
		o.counter("handshakes_total", v, kind)
	}
	for _, d := range c.src.Drops() {
		o.counter("drops_total", d.Count, d.Reason)
	}
	for _, p := range c.src.Peers() {
		o.counter("peer_packets_total", p.TxPackets, p.Name, "tx")
		o.counter("peer_packets_total", p.RxPackets, p.Name, "rx")
		o.counter("peer_bytes_total", p.TxBytes, p.Name, "tx")
		o.counter("peer_bytes_total", p.RxBytes, p.Name, "rx")
		o.gauge("peer_mtu_bytes", float64(p.MTU), p.Name)
		if p.PublicKey != "" {
			o.gauge("peer_session", flag(p.Session), p.Name)
			o.gauge("peer_superframes", flag(p.Superframes), p.Name)
			o.gauge("peer_superframes_paused", flag(p.Paused), p.Name)
		}
		if p.LastHandshake != nil {
			o.gauge("peer_last_handshake_timestamp_seconds", float64(p.LastHandshake.UnixMilli())/1000, p.Name)
		}
		if p.LastSeen != nil {
			o.gauge("peer_last_seen_timestamp_seconds", float64(p.LastSeen.UnixMilli())/1000, p.Name)
		}
	}
}

func (o out) workers(workers []api.Worker) {
	var sum api.Worker
	for _, w := range workers {
		o.counter("wakeups_total", w.Wakeups, strconv.Itoa(w.ID))
		o.counter("pauses_total", w.Pauses, strconv.Itoa(w.ID))
		o.counter("lanes_given_total", w.LanesGiven, strconv.Itoa(w.ID))
		o.counter("flows_moved_total", w.FlowsMoved, strconv.Itoa(w.ID))
		sum.TxSegments += w.TxSegments
		sum.RxSegments += w.RxSegments
		sum.TxBytes += w.TxBytes
		sum.RxBytes += w.RxBytes
		sum.TxSuperpackets += w.TxSuperpackets
		sum.RxSuperpackets += w.RxSuperpackets
		sum.LocalPackets += w.LocalPackets
		sum.OutsidePackets += w.OutsidePackets
		sum.DeviceReads += w.DeviceReads
		sum.DeviceWrites += w.DeviceWrites
		sum.TxCalls += w.TxCalls
		sum.TxWhole += w.TxWhole
		sum.TxWholeRefused += w.TxWholeRefused
		sum.TxSuperframes += w.TxSuperframes
		sum.RxSuperframes += w.RxSuperframes
		sum.ICMPSent += w.ICMPSent
		sum.ICMPRateLimited += w.ICMPRateLimited
	}
	o.counter("packets_total", sum.TxSegments, "tx")
	o.counter("packets_total", sum.RxSegments, "rx")
	o.counter("bytes_total", sum.TxBytes, "tx")
	o.counter("bytes_total", sum.RxBytes, "rx")
	o.counter("superpackets_total", sum.TxSuperpackets, "tx")
	o.counter("superpackets_total", sum.RxSuperpackets, "rx")
	o.counter("superpackets_total", sum.LocalPackets, "local")
	o.counter("superpackets_total", sum.OutsidePackets, "outside")
	o.counter("whole_superpackets_total", sum.TxWhole, "sent")
	o.counter("whole_superpackets_total", sum.TxWholeRefused, "refused")
	o.counter("superframes_total", sum.TxSuperframes, "tx")
	o.counter("superframes_total", sum.RxSuperframes, "rx")
	o.counter("device_reads_total", sum.DeviceReads)
	o.counter("device_writes_total", sum.DeviceWrites)
	o.counter("send_calls_total", sum.TxCalls)
	o.counter("icmp_sent_total", sum.ICMPSent)
	o.counter("icmp_rate_limited_total", sum.ICMPRateLimited)
}
