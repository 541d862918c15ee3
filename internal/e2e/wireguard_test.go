package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

const wireguardPort = 51820

// newEncrypted makes a cluster whose nodes get a key each. Tests of encryption wait for timers of the protocol, so they
// run beside each other; the prefix of a lab is its own.
func newEncrypted(t *testing.T, prefix string) *cluster {
	t.Helper()
	t.Parallel()
	return newClusterFor(t, lab.Options{Prefix: "e2e" + prefix}, encryptedWait)
}

// encryptedWait bounds such a test, which shares the machine with another one.
const encryptedWait = 200 * time.Second

// encrypted adds a node with a key.
func (c *cluster) encrypted(name string) *lab.Node {
	c.t.Helper()
	n := c.node(name)
	n.Settings.Encapsulation = "wireguard"
	c.ok(n.MakeKey())
	return n
}

// reload has running nodes read their files and keys now, and waits until they did, without an error.
func (c *cluster) reload(nodes ...*lab.Node) {
	c.t.Helper()
	for _, n := range nodes {
		begin := time.Now()
		c.ok(n.Daemon().Signal(syscall.SIGHUP))
		c.eventually(func() error {
			r := ask[api.Status](c, n, "status").LastReload
			if r == nil || r.Time.Before(begin) {
				return fmt.Errorf("%w: node %s has not reloaded", errNotYet, n.Name)
			}
			if r.Error != "" || len(r.NeedsRestart) > 0 || r.Incomplete != "" {
				return fmt.Errorf("node %s: reload: %+v", n.Name, *r)
			}
			return nil
		})
	}
}

// A guard looks at the underlay as long as a test runs: nothing may cross it that somebody else could read.
type guard struct {
	c     *cluster
	taps  []*lab.Tap
	plain *lab.Plaintext
	pairs func(a, b netip.Addr) bool // the pairs of underlay addresses to guard

	mu          sync.Mutex
	bad         int
	first       []string
	initiations int                // of handshakes, as often as ports saw them
	data        int                // messages with encrypted packets, or superpackets of them
	pieces      map[netip.Addr]int // the same of pieces of superframes, by sender
}

// guardUnderlay begins to look at every port of the switch.
func (c *cluster) guardUnderlay() *guard {
	c.t.Helper()
	return c.guardPairs(func(netip.Addr, netip.Addr) bool { return true })
}

// guardPairs begins to look at every port of the switch for what some pairs of underlay addresses say to each other.
func (c *cluster) guardPairs(pairs func(a, b netip.Addr) bool) *guard {
	c.t.Helper()
	g := &guard{c: c, plain: lab.NewPlaintext(), pairs: pairs, pieces: map[netip.Addr]int{}}
	ports := []string{lab.OutsidePort}
	for _, n := range c.lab.Nodes() {
		ports = append(ports, n.Port())
	}
	for _, port := range ports {
		tap, err := c.lab.Switch().Tap(port, func(protocol uint16, b []byte) { g.see(port, protocol, b) })
		c.ok(err)
		g.taps = append(g.taps, tap)
	}
	c.t.Cleanup(g.stop)
	return g
}

// Types of the protocol's messages.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeData       = 4
	typePiece      = 0x57 // Warren's own
)

func (g *guard) see(port string, protocol uint16, b []byte) {
	var p *pkt
	switch protocol {
	case unix.ETH_P_ARP:
		p = parseARP(b)
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		p = parseIP(b)
	}
	if p == nil || !g.pairs(p.src, p.dst) {
		return
	}
	why := ""
	switch {
	case bare(p):
		why = "a pod's address"
	case p.vxlan() || p.proto == protoUDP && p.sport == vxlanPort:
		why = "VXLAN"
	case g.plain.In(b):
		why = "plaintext"
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if why != "" {
		const show = 10
		if g.bad++; len(g.first) < show {
			g.first = append(g.first, fmt.Sprintf("%s at %s: %s", why, port, p))
		}
	}
	if p.proto == protoUDP && len(p.payload) > 0 {
		switch p.payload[0] {
		case typeInitiation:
			g.initiations++
		case typeData:
			g.data++
		case typePiece:
			g.pieces[p.src]++
		}
	}
}

// handshakes is how often an initiation was seen; each is seen at two ports.
func (g *guard) handshakes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.initiations
}

func (g *guard) stop() {
	for _, t := range g.taps {
		if err := t.Stop(); err != nil {
			g.c.t.Error(err)
		}
	}
}

// nothingReadable ends the guard: it must have seen nothing readable, and encrypted packets.
func (g *guard) nothingReadable() {
	g.c.t.Helper()
	g.stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bad > 0 {
		g.c.t.Errorf("%d packets on the underlay that anybody can read:\n  %s", g.bad, strings.Join(g.first, "\n  "))
	}
	if g.data == 0 {
		g.c.t.Error("no encrypted packet on the underlay: the guard looks at the wrong place")
	}
}

// TestGuardSees has the guard look at pods that talk in plaintext, and at a packet that nobody tunnels.
func TestGuardSees(t *testing.T) {
	p := newPair(t, "routed")
	for what, do := range map[string]func(){
		"VXLAN": func() { p.ping(p.a1.NS, p.b1.V4, lab.Ping{}) },
		"a pod's address": func() {
			_, _ = p.lab.Outside.Run(p.ctx, "ping", "-c1", "-W1", "-I", "10.244.77.7", p.a.V4.String())
		},
		"plaintext": func() { p.transfer(lab.Path{From: p.a.NS, To: p.b.NS, Addr: p.b.V4}, transferBytes/8) },
	} {
		p.do(p.lab.Outside, "ip addr replace 10.244.77.7/32 dev lo")
		g := p.guardUnderlay()
		do()
		p.eventually(func() error {
			g.mu.Lock()
			defer g.mu.Unlock()
			if !slices.ContainsFunc(g.first, func(s string) bool { return strings.HasPrefix(s, what) }) {
				return fmt.Errorf("%w: the guard does not see %s: %q", errNotYet, what, g.first)
			}
			return nil
		})
		g.stop()
	}
}

// A pinger pings twenty times a second.
type pinger struct {
	c    *cluster
	what string
	proc *lab.Proc
}

// startPinger begins to ping. The name is the pinger's own.
func (c *cluster) startPinger(name string, from *lab.NS, to netip.Addr) *pinger {
	c.t.Helper()
	p := &pinger{c: c, what: name}
	var err error
	p.proc, err = c.lab.Start(from, "ping-"+name, "ping", "-n", "-i", "0.05", to.String())
	c.ok(err)
	return p
}

var answer = regexp.MustCompile(`(?m)^\d+ bytes from .* icmp_seq=(\d+) .* time=([\d.]+) ms`)

// answered are the numbers of the answers up to now, with the milliseconds that they took.
func (p *pinger) answered() map[int]float64 {
	p.c.t.Helper()
	text, err := os.ReadFile(p.proc.Log)
	p.c.ok(err)
	got := make(map[int]float64)
	for _, m := range answer.FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.Atoi(m[1])
		p.c.ok(err)
		got[n], err = strconv.ParseFloat(m[2], 64)
		p.c.ok(err)
	}
	return got
}

// answers is how many there were up to now, without a look at each: a test asks often, and of logs that grow.
func (p *pinger) answers() int {
	p.c.t.Helper()
	text, err := os.ReadFile(p.proc.Log)
	p.c.ok(err)
	return bytes.Count(text, []byte(" bytes from "))
}

// works waits until answers come to requests from now on.
func (p *pinger) works() {
	p.c.t.Helper()
	allWork([]*pinger{p})
}

// allWork waits until every one of them has answers to requests from now on.
func allWork(pingers []*pinger) {
	before := make([]int, len(pingers))
	for i, p := range pingers {
		before[i] = p.answers()
	}
	const some = 3
	for i, p := range pingers {
		p.c.t.Helper()
		p.c.eventually(func() error {
			if now := p.answers(); now < before[i]+some {
				return fmt.Errorf("%w: %s: %d answers, %d before", errNotYet, p.what, now, before[i])
			}
			return nil
		})
	}
}

// lost ends the pinger and returns how many requests were not answered, among those before the last answer. One that
// waited for a handshake and was answered late is not lost.
func (p *pinger) lost() int {
	p.c.t.Helper()
	p.works()
	p.c.ok(p.proc.Signal(syscall.SIGINT))
	ctx, cancel := context.WithTimeout(p.c.ctx, 5*time.Second)
	defer cancel()
	_ = p.proc.Wait(ctx) // its status tells of lost packets
	got := p.answered()
	last, slowest := 0, 0
	for n, took := range got {
		last = max(last, n)
		if took > got[slowest] {
			slowest = n
		}
	}
	const slow = 500 // ms
	if got[slowest] > slow {
		p.c.t.Logf("%s: the answer to number %d took %.0f ms", p.what, slowest, got[slowest])
	}
	if missing := last - len(got); missing > 0 {
		var gaps []int
		for n := 1; n <= last; n++ {
			if _, ok := got[n]; !ok {
				gaps = append(gaps, n)
			}
		}
		p.c.t.Logf("%s: of %d requests these were not answered: %v", p.what, last, gaps)
		return missing
	}
	return 0
}

// traffic is what runs between pods while something changes: pings and TCP connections, both ways and in both families.
type traffic struct {
	c        *cluster
	pingers  []*pinger
	echoes   []*lab.Echo
	transfer *lab.Transfer
}

// startTraffic begins it, and waits until all of it works.
func (c *cluster) startTraffic(name string, one, other *lab.Pod) *traffic {
	c.t.Helper()
	k := &traffic{c: c}
	for _, f := range families() {
		for i, p := range []lab.Path{between(one, other, f), between(other, one, f)} {
			// What is sent first waits for a handshake.
			c.eventually(func() error {
				_, err := p.From.Ping(c.ctx, p.Addr, lab.Ping{Count: 1})
				return err
			})
			k.pingers = append(k.pingers, c.startPinger(fmt.Sprintf("%s-v%d-%d", name, f, i), p.From, p.Addr))
			e, err := lab.StartEcho(c.ctx, p, 10*time.Millisecond)
			c.ok(err)
			k.echoes = append(k.echoes, e)
		}
	}
	var err error
	k.transfer, err = lab.StartTransfer(c.ctx, between(one, other, 4), lab.TransferOptions{BytesPerSecond: 2 << 20})
	c.ok(err)
	k.works()
	return k
}

// works waits until everything moves.
func (k *traffic) works() {
	k.c.t.Helper()
	k.answers()
	allWork(k.pingers)
}

// answers waits until something that was sent from now on was answered in each of the echoing connections.
func (k *traffic) answers() {
	k.c.t.Helper()
	for _, e := range k.echoes {
		ctx, cancel := context.WithTimeout(k.c.ctx, 40*time.Second)
		k.c.ok(e.WaitAnswered(ctx))
		cancel()
	}
}

// end ends the traffic: no connection may have broken and no byte changed. It returns the number of pings lost.
func (k *traffic) end() (lost int) {
	k.c.t.Helper()
	for _, p := range k.pingers {
		lost += p.lost()
	}
	for _, e := range k.echoes {
		if err := e.Stop(); err != nil {
			k.c.t.Error(err)
		}
	}
	k.transfer.Finish()
	if _, err := k.transfer.Wait(); err != nil {
		k.c.t.Error(err)
	}
	return lost
}

// psk writes a preshared key into a file of a node's own and returns its path.
func (c *cluster) psk(n *lab.Node, text string) string {
	c.t.Helper()
	file := filepath.Join(n.Dir, "psk")
	c.ok(os.WriteFile(file, []byte(text+"\n"), 0o600))
	return file
}
