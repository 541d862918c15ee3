package e2e_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// A capture counts the packets that pass a device and match, in both directions.
type capture struct {
	c     *cluster
	where string
	match func(*pkt) bool
	tap   *lab.Tap

	mu    sync.Mutex
	count int   // packets that match
	first []pkt // the first of them
}

// keepPackets is how many matching packets are kept to be shown.
const keepPackets = 200

// capture begins to listen at a device. The capture ends with the test at the latest.
func (c *cluster) capture(ns *lab.NS, device string, match func(*pkt) bool) *capture {
	c.t.Helper()
	k := &capture{c: c, where: ns.Name + " " + device, match: match}
	var err error
	k.tap, err = ns.Tap(device, k.note)
	c.ok(err)
	c.t.Cleanup(func() { k.stop() })
	return k
}

func (k *capture) note(protocol uint16, b []byte) {
	var p *pkt
	switch protocol {
	case unix.ETH_P_ARP:
		p = parseARP(b)
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		p = parseIP(b)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p == nil || !k.match(p) {
		return
	}
	if k.count++; len(k.first) < keepPackets {
		// The buffer is used again; nobody looks at a payload later.
		p.payload = nil
		k.first = append(k.first, *p)
	}
}

// so is what matched so far.
func (k *capture) so() (int, []pkt) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.count, k.first
}

// stop ends the capture, after all that had arrived, and returns the number of packets that matched.
func (k *capture) stop() int {
	k.c.t.Helper()
	if err := k.tap.Stop(); err != nil {
		k.c.t.Error(err)
	}
	n, _ := k.so()
	return n
}

// nothing ends the capture and wants it to have seen nothing that matches.
func (k *capture) nothing(what string) {
	k.c.t.Helper()
	k.atMost(0, what)
}

func (k *capture) atMost(most int, what string) {
	k.c.t.Helper()
	if n := k.stop(); n > most {
		k.c.t.Errorf("%s: %d packets at %s, want at most %d:\n  %s", what, n, k.where, most, k.show())
	}
}

// some waits until the capture saw at least one packet that matches.
func (k *capture) some(what string) {
	k.c.t.Helper()
	k.c.eventually(func() error {
		if n, _ := k.so(); n == 0 {
			return fmt.Errorf("%w: %s: no such packet at %s", errNotYet, what, k.where)
		}
		return nil
	})
}

func (k *capture) show() string {
	_, first := k.so()
	lines := make([]string, 0, len(first))
	for i := range first[:min(len(first), 12)] {
		lines = append(lines, first[i].String())
	}
	return strings.Join(lines, "\n  ")
}

// clusterCIDRs hold every pod of a lab.
func clusterCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
}

// bare matches packets that name a pod's address outside VXLAN: in their header, in what an ICMP error quotes, or in
// what ARP and neighbour discovery ask for.
func bare(p *pkt) bool {
	for _, a := range p.addresses() {
		for _, c := range clusterCIDRs() {
			if a.IsValid() && c.Contains(a) {
				return true
			}
		}
	}
	return false
}

// quiet is how long a test waits for what must not come.
const quiet = 200 * time.Millisecond
