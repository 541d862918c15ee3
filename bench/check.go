package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"

	"github.com/warren-net/warren/internal/lab"
)

// carriedShare is how much of the payload the counters of a device have to show. They count headers too, so less than
// all of it means that packets took another way; what is left open is for counters read a moment too early.
const carriedShare = 0.98

// checkCarried compares what moved while payload bytes went from the first end to the second.
func checkCarried(b *Bed, p *Path, wire string, moved counters, payload float64) error {
	if payload <= 0 {
		return fmt.Errorf("self-check: nothing arrived")
	}
	want := uint64(payload * carriedShare)
	type count struct {
		node   int
		device string
		what   string
		bytes  uint64
	}
	counts := []count{
		{0, wireDevice, "sent", moved.wire[0].txBytes},
		{1, wireDevice, "received", moved.wire[1].rxBytes},
	}
	if p.Device != "" {
		counts = append(counts, count{0, p.Device, "sent", moved.device[0].txBytes},
			count{1, p.Device, "received", moved.device[1].rxBytes})
	}
	for _, c := range counts {
		if c.bytes < want {
			return fmt.Errorf("self-check: %.0f bytes arrived, but %s of node %s %s only %d: the traffic took another way",
				payload, c.device, b.Nodes[c.node].Name, c.what, c.bytes)
		}
	}
	const ethernet = 14
	if tx := moved.wire[0]; wire == WireSegmented && tx.txBytes > tx.txPackets*uint64(b.MTU+ethernet) {
		return fmt.Errorf("self-check: %d bytes crossed the segmented wire in %d packets: larger than its MTU of %d",
			tx.txBytes, tx.txPackets, b.MTU)
	}
	return nil
}

// proofBytes is the size of the transfer that proves a path before it is measured.
const proofBytes = 8 << 20

// prove sends bytes over a path that has just come up, compares their hashes, and counts on the wire what bears the
// address of a pod: nothing may where there is a tunnel, and all of it does where there is none. The counters exist
// only as long as that takes, so that no measurement pays for them.
func prove(ctx context.Context, b *Bed, p *Path) error {
	for _, n := range b.Nodes {
		err := commands(ctx, n.NS,
			"nft add table inet warrenbench",
			"nft add chain inet warrenbench in { type filter hook prerouting priority -400 ; }",
			fmt.Sprintf("nft add rule inet warrenbench in iifname %s ip saddr 10.244.0.0/16 counter", wireDevice))
		if err != nil {
			return err
		}
	}
	t, err := lab.StartTransfer(ctx, lab.Path{From: p.Ends[0].NS, To: p.Ends[1].NS, Addr: p.Ends[1].Addr},
		lab.TransferOptions{Bytes: proofBytes})
	if err == nil {
		_, err = t.Wait()
	}
	if err != nil {
		return fmt.Errorf("self-check: the pods don't reach each other: %w", err)
	}
	for _, n := range b.Nodes {
		out, err := n.NS.Run(ctx, "nft", "list", "table", "inet", "warrenbench")
		if err != nil {
			return err
		}
		bare, err := parseCounter(out)
		if err != nil {
			return err
		}
		if p.Device != "" && bare > 0 {
			return fmt.Errorf("self-check: %d packets of pods reached node %s outside of the tunnel", bare, n.Name)
		}
		if p.Device == "" && bare == 0 {
			return fmt.Errorf("self-check: no packet of a pod reached node %s, so a leak would not be seen either", n.Name)
		}
		if err := commands(ctx, n.NS, "nft delete table inet warrenbench"); err != nil {
			return err
		}
	}
	return nil
}

// parseCounter reads the packets of the only counter of a listing.
func parseCounter(listing string) (uint64, error) {
	m := regexp.MustCompile(`counter packets (\d+)`).FindStringSubmatch(listing)
	if m == nil {
		return 0, fmt.Errorf("no counter in what nft lists: %q", listing)
	}
	return strconv.ParseUint(m[1], 10, 64)
}
