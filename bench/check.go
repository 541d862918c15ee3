package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/warren-net/warren/internal/lab"
)

// carriedShare is how much of the payload the counters of a device have to show. They count headers too, so less than
// all of it means that packets took another way; what is left open is for counters read a moment too early.
const carriedShare = 0.98

// A delivery is payload that arrived at a pod.
type delivery struct {
	from  int // the sender's node
	bytes float64
}

// checkCarried compares what moved with the payload that arrived.
func checkCarried(b *Bed, p *Path, wire string, moved counters, arrived ...delivery) error {
	crossed := [][2]string{sameDevice(wireDevice)}
	if p.tunnels() {
		crossed = append(crossed, p.Devices)
	}
	for _, d := range arrived {
		if d.bytes <= 0 {
			return fmt.Errorf("self-check: nothing arrived from node %s", b.Nodes[d.from].Name)
		}
		for _, devices := range crossed {
			for _, hop := range []struct {
				node int
				Hop
			}{{d.from, Hop{devices[d.from], true}}, {1 - d.from, Hop{devices[1-d.from], false}}} {
				if err := checkHop(b.Nodes[hop.node], hop.Hop, moved.devices[hop.node], d.bytes); err != nil {
					return err
				}
			}
		}
	}
	const ethernet = 14
	for i := range moved.devices {
		tx := moved.devices[i][wireDevice]
		if wire == WireSegmented && tx.txBytes > tx.txPackets*uint64(b.MTU+ethernet) {
			return fmt.Errorf("self-check: %d bytes crossed the segmented wire in %d packets: larger than its MTU of %d",
				tx.txBytes, tx.txPackets, b.MTU)
		}
	}
	return nil
}

func checkHop(n *lab.Node, hop Hop, moved map[string]devStats, payload float64) error {
	counted, what := moved[hop.Device].rxBytes, "received"
	if hop.Sent {
		counted, what = moved[hop.Device].txBytes, "sent"
	}
	if counted < uint64(payload*carriedShare) {
		return fmt.Errorf("self-check: %.0f bytes arrived, but %s of node %s %s only %d: the traffic took another way",
			payload, hop.Device, n.Name, what, counted)
	}
	return nil
}

// strayShare is how much of what pods of one node say to each other may cross the wire: what the nodes themselves have
// to tell each other meanwhile.
const strayShare = 0.01

// checkNear compares what moved with the payload that arrived at a pod of the first node from another of its pods.
func checkNear(b *Bed, p *Path, moved counters, payload float64) error {
	if payload <= 0 {
		return fmt.Errorf("self-check: nothing arrived at the pod of the same node")
	}
	for _, hop := range p.Near {
		if err := checkHop(b.Nodes[0], hop, moved.devices[0], payload); err != nil {
			return err
		}
	}
	wire := moved.devices[0][wireDevice]
	if stray := max(wire.txBytes, wire.rxBytes); stray > uint64(payload*strayShare) {
		return fmt.Errorf("self-check: %d bytes crossed the wire while a pod sent %.0f to one of its own node",
			stray, payload)
	}
	return nil
}

// proofBytes is the size of the transfer that proves a path before it is measured.
const proofBytes = 8 << 20

// prove sends bytes over a path that has just come up, compares their hashes, and counts on the wire what bears the
// address of a pod, and what shows the pods' data in the clear: nothing may where there is a tunnel or a cipher, and
// all of it does where there is none. The counters exist only as long as that takes, so that no measurement pays for
// them; there, checkCarried sees a leak of more than carriedShare leaves open.
func prove(ctx context.Context, b *Bed, p *Path) error {
	for _, n := range b.Nodes {
		if err := countBare(ctx, n); err != nil {
			return err
		}
	}
	clear, err := countClear(b, func() error {
		t, err := lab.StartTransfer(ctx, lab.Path{From: p.Ends[0].NS, To: p.Ends[1].NS, Addr: p.Ends[1].Addr},
			lab.TransferOptions{Bytes: proofBytes})
		if err == nil {
			_, err = t.Wait()
		}
		if err != nil {
			return fmt.Errorf("self-check: the pods don't reach each other: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.Encrypts && clear > 0 {
		return fmt.Errorf("self-check: %d packets show the pods' data in the clear on the wire", clear)
	}
	if !p.Encrypts && clear == 0 {
		return errors.New("self-check: no packet shows the pods' data on the wire, so nobody knows what encrypts")
	}
	for _, n := range b.Nodes {
		bare, err := bareArrived(ctx, n)
		if err != nil {
			return err
		}
		if p.tunnels() && bare > 0 {
			return fmt.Errorf("self-check: %d packets of pods reached node %s outside of the tunnel", bare, n.Name)
		}
		if !p.tunnels() && bare == 0 {
			return fmt.Errorf("self-check: no packet of a pod reached node %s, so a leak would not be seen either", n.Name)
		}
		if err := commands(ctx, n.NS, "nft delete table inet warrenbench"); err != nil {
			return err
		}
	}
	return nil
}

// countClear says how many packets crossed the wire while f ran in which the pods' data could be read, whatever they
// were wrapped in.
func countClear(b *Bed, f func() error) (packets int, err error) {
	plain := lab.NewPlaintext()
	tap, err := b.Nodes[0].NS.Tap(wireDevice, func(_ uint16, packet []byte) {
		if plain.In(packet) {
			packets++
		}
	})
	if err != nil {
		return 0, err
	}
	err = f()
	return packets, errors.Join(err, tap.Stop())
}

// countBare begins to count what arrives at a node by the wire from a pod, or for one: the source alone would not tell
// of what was masqueraded.
func countBare(ctx context.Context, n *lab.Node) error {
	const rule = "nft add rule inet warrenbench in iifname %s ip %s 10.244.0.0/16 counter"
	return commands(ctx, n.NS,
		"nft add table inet warrenbench",
		"nft add chain inet warrenbench in { type filter hook prerouting priority -400 ; }",
		fmt.Sprintf(rule+" accept", wireDevice, "saddr"),
		fmt.Sprintf(rule, wireDevice, "daddr"))
}

// bareArrived says how many packets countBare has counted.
func bareArrived(ctx context.Context, n *lab.Node) (uint64, error) {
	out, err := n.NS.Run(ctx, "nft", "list", "table", "inet", "warrenbench")
	if err != nil {
		return 0, err
	}
	return parseCounters(out)
}

// parseCounters adds up the packets of the counters of a listing, which has two.
func parseCounters(listing string) (sum uint64, err error) {
	counters := regexp.MustCompile(`counter packets (\d+)`).FindAllStringSubmatch(listing, -1)
	if len(counters) != 2 {
		return 0, fmt.Errorf("%d counters in what nft lists: %q", len(counters), listing)
	}
	for _, m := range counters {
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
