package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/flood"
)

// floodScenario is a TCP stream while handshakes flood its receiver's node, and calmScenario the same without.
const (
	floodScenario = "flood"
	calmScenario  = "tcp-1"
)

const (
	// floodRate is how many initiations a second the flood has: some 75 Mbit/s.
	floodRate = 50_000
	// floodStrangers is how many different ones there are.
	floodStrangers = 1000
	// floodLead is how long the flood has gone on before the stream begins.
	floodLead = 500 * time.Millisecond
	// floodShare is the part of the rate that has to leave for the figure to be one of a flood.
	floodShare = 0.9
)

// A Victim is what an attacker knows of a node.
type Victim struct {
	Key  key.Public
	Port uint16
}

// Addresses of the link between the second node and the attacker, and the network that the attacker claims to be.
var (
	floodNode     = netip.MustParseAddr("198.51.100.1")
	floodAttacker = netip.MustParseAddr("198.51.100.2")
	floodSources  = netip.MustParsePrefix("203.0.113.0/24")
)

// floodDevice is the second node's end of that link: what crosses it is not counted as the system's traffic.
const floodDevice = "flood0"

// An attacker sends handshakes to the second node, over a link of its own.
type attacker struct {
	ns     *lab.NS
	sender *flood.Sender
	calls  [][]byte
	to     netip.AddrPort
}

// attacker is the bed's, which is made when it is asked for first.
func (b *Bed) attacker(ctx context.Context, v Victim) (*attacker, error) {
	if b.attack != nil {
		return b.attack, nil
	}
	node := b.Nodes[1]
	a := &attacker{to: netip.AddrPortFrom(node.V4, v.Port)}
	var err error
	if a.ns, err = b.Lab.AddNS("attacker"); err != nil {
		return nil, err
	}
	err = errors.Join(
		commands(ctx, node.NS,
			fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", floodDevice, a.ns.Name),
			fmt.Sprintf("ip addr add %s/30 dev %s", floodNode, floodDevice), "ip link set "+floodDevice+" up",
			// What it answers goes to the attacker's link as well, and ends there.
			fmt.Sprintf("ip route add %s via %s", floodSources, floodAttacker)),
		commands(ctx, a.ns, fmt.Sprintf("ip addr add %s/30 dev eth0", floodAttacker), "ip link set eth0 up",
			fmt.Sprintf("ip route add %s via %s", node.V4, floodNode)),
	)
	if err == nil {
		a.calls, err = flood.Initiations(v.Key, floodStrangers)
	}
	if err == nil {
		a.sender, err = flood.Open(a.ns)
	}
	if err != nil {
		return nil, fmt.Errorf("the attacker: %w", err)
	}
	b.OnClose(a.sender.Close)
	b.attack = a
	return a, nil
}

// next is an initiation whose first MAC is right, from an address and a port that hardly come twice.
func (a *attacker) next(d *flood.Datagram) {
	source := floodSources.Addr().As4()
	source[3] = byte(1 + rand.IntN(254))
	const ephemeral = 1024
	d.From = netip.AddrPortFrom(netip.AddrFrom4(source), uint16(ephemeral+rand.IntN(1<<16-ephemeral)))
	d.To, d.Payload = a.to, a.calls[rand.IntN(len(a.calls))]
}

// flooded sends one stream to a node that is flooded. This process does nothing else meanwhile than to flood, on one
// thread: the stream is iperf3's.
func flooded(ctx context.Context, m measurement) ([]figure, error) {
	a, err := m.bed.attacker(ctx, *m.path.Victim)
	if err != nil {
		return nil, err
	}
	during, stop := context.WithCancel(ctx)
	defer stop()
	type outcome struct {
		sent int
		took time.Duration
		err  error
	}
	done := make(chan outcome, 1)
	before, err := readDevices(m.bed.Nodes[1].NS)
	if err != nil {
		return nil, err
	}
	go func() {
		var o outcome
		o.sent, o.took, o.err = a.sender.Run(during, flood.Load{Rate: floodRate, Next: a.next})
		done <- o
	}()
	time.Sleep(floodLead)
	r, moved, err := m.send(ctx, iperfRun{streams: 1, time: m.time})
	stop()
	o := <-done
	if err = errors.Join(err, o.err); err != nil {
		return nil, err
	}
	after, err := readDevices(m.bed.Nodes[1].NS)
	if err != nil {
		return nil, err
	}
	// What arrived at the node, before anybody there could drop it.
	arrived := float64(after[floodDevice].rxPackets-before[floodDevice].rxPackets) / o.took.Seconds()
	if arrived < floodRate*floodShare {
		m.note("%s initiations a second arrived at the node, not %d: its processors had no time for the flood",
			number(arrived), floodRate)
	}
	figures, err := m.tcpFigures(r, moved)
	return append(figures, figure{metricFlood, arrived}), err
}
