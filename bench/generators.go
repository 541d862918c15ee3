package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-net/warren/bench/load"
)

// The scenarios below use generators of the bench's own (package load): iperf3 does not do these.

func (m measurement) route() load.Route {
	near, far := m.path.Ends[0], m.path.Ends[1]
	return load.Route{From: near.NS, To: far.NS, Addr: far.Addr, CongestionControl: m.congestionControl}
}

const (
	smallDatagram = 64 // bytes of payload
	udpHeaders    = 28 // bytes of IPv4 and UDP
)

// udp64 searches the highest rate that arrives; every probe of the search is checked.
func udp64(ctx context.Context, m measurement) (_ []figure, err error) {
	d, err := load.OpenDatagrams(m.route(), smallDatagram)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	probe := func(ctx context.Context, o load.Offer) (out load.Outcome, err error) {
		_, err = m.carry(func() (_ []delivery, err error) {
			out, err = d.Probe(ctx, o)
			// Without the headers: datagrams that a device hands over as one superpacket have one header together.
			return []delivery{{0, float64(out.Received * smallDatagram)}}, err
		})
		return out, err
	}
	out, err := load.HighestRate(ctx, probe, m.time)
	if err == nil && out.SendersLimit {
		m.sendersLimit(metricReceived)
	}
	return []figure{{metricReceived, out.Rate()}}, err
}

// connectClients is how many clients connect at once.
const connectClients = 16

// resetsOne is in how many connections one may be reset. Linux before 6.19 has a moment in which neither the request
// nor the connection that it becomes is found, and a segment that arrives then on another processor is answered with
// RST ("inet: Avoid ehash lookup race in inet_ehash_insert()"): some in a million, without any overlay.
const resetsOne = 1000

// connect makes short connections.
func connect(ctx context.Context, m measurement) ([]figure, error) {
	var r load.ConnectResult
	_, err := m.carry(func() (_ []delivery, err error) {
		r, err = load.Connect(ctx, m.route(), load.ConnectOptions{Clients: connectClients, Time: m.time})
		// Three packets each way at least, SYN, data and FIN, with headers of 40 bytes and more.
		bytes := float64(r.Connections * 3 * 40)
		return []delivery{{0, bytes}, {1, bytes}}, err
	})
	if r.Reset > 0 {
		m.note("of %d connections %d were reset", r.Connections+r.Reset, r.Reset)
	}
	if err == nil && r.Reset > r.Connections/resetsOne {
		err = fmt.Errorf("of %d connections %d were reset, more than one in %d", r.Connections+r.Reset, r.Reset, resetsOne)
	}
	return []figure{{metricConns, float64(r.Connections) / r.Took.Seconds()}}, err
}

// errUnable is the error of a measurement in which nothing went wrong but that the system can't do what is asked.
var errUnable = errors.New("more than it can do")

// manyFlows sends on a thousand connections at once.
func manyFlows(ctx context.Context, m measurement) ([]figure, error) {
	const flows, warm = 1000, 500 * time.Millisecond
	var r load.FlowsResult
	_, err := m.carry(func() (_ []delivery, err error) {
		r, err = load.Flows(ctx, m.route(), load.FlowsOptions{Flows: flows, Warm: warm, Time: m.time})
		return []delivery{{0, float64(r.All)}}, err
	})
	if errors.Is(err, load.ErrEstablish) {
		err = fmt.Errorf("%w: %w", errUnable, err)
	}
	if err == nil && r.Moving < flows/2 {
		err = fmt.Errorf("%w: only %d of %d flows moved during the measurement, so the rate is not that of %d", errUnable,
			r.Moving, flows, flows)
	}
	return []figure{{metricRate, float64(r.Bytes) * 8 / r.Took.Seconds() / 1e9}}, err
}
