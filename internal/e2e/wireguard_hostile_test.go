package e2e_test

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/flood"
)

// hostileDatagrams is how many the attack has, but for those of what goes on while a new peer comes.
func hostileDatagrams() int {
	if raceEnabled {
		return 500_000 // each costs ten times as much
	}
	return 10_000_000
}

// TestHostileTraffic sends ten million datagrams to a node's port that somebody on the underlay can make who knows its
// public key and has listened, while pods talk. Nothing of the node's may end, move or grow, nobody may get more than
// cookies, and a peer that comes in the middle of it gets its session.
func TestHostileTraffic(t *testing.T) {
	c := newEncrypted(t, "hostile")
	a, b, late := c.encrypted("a"), c.encrypted("b"), c.encrypted("late")
	a.Settings.Metrics = metricsAddress
	c.configure()
	heard := c.listen(a, b)
	c.up(a, b)
	one, other := c.pod(a, "1"), c.pod(b, "1")
	k := c.startTraffic("hostile", one, other)
	c.countAnswers(a, b, late)
	c.countAnswered(a)
	x := c.newAttacker(a, b, heard())
	x.warmUp()
	before := c.measure(a)
	pid := a.Daemon().Pid()

	for _, kind := range x.kinds() {
		sent, took := x.send(kind, hostileDatagrams()*kind.share/100)
		t.Logf("%s: %d in %.1f s", kind.name, sent, took.Seconds())
		k.answers()
		c.ping(one.NS, lab.OutsideV4(), lab.Ping{Count: 1}) // a new connection that the kernel has to track
	}
	x.oversized()
	k.works()
	x.newPeer(late, one)

	if lost := k.end(); lost > 0 {
		t.Logf("%d pings lost", lost)
	}
	if a.Daemon().Pid() != pid || !running(a) {
		t.Error("the daemon has ended")
	}
	for _, n := range []*lab.Node{b, late} {
		if at := c.endpoint(a, n.Name); at != netip.AddrPortFrom(n.V4, wireguardPort) {
			t.Errorf("peer %s is at %s now", n.Name, at)
		}
	}
	c.onlyCookies(a)
	c.measure(a).noMoreThan(c, before)
	x.accounted()
	// Right after all that a handshake works as ever.
	c.ok(b.Kill())
	c.up(b)
	c.within(30*time.Second, func() error {
		_, err := one.NS.Ping(c.ctx, other.V4, lab.Ping{Count: 1})
		return err
	})
}

// listen notes what crosses a node's port from and to a peer, until the returned function is called, which returns the
// messages to the node, by their type.
func (c *cluster) listen(n, peer *lab.Node) (heard func() map[byte][][]byte) {
	c.t.Helper()
	const most = 2000 // of each type
	messages := make(map[byte][][]byte)
	tap, err := c.lab.Switch().Tap(n.Port(), func(_ uint16, b []byte) {
		p := parseIP(b)
		if p == nil || p.proto != protoUDP || p.dst != n.V4 || p.src != peer.V4 || p.dport != wireguardPort ||
			len(p.payload) == 0 || len(p.payload) > flood.MaxPayload {
			return
		}
		if of := p.payload[0]; len(messages[of]) < most {
			messages[of] = append(messages[of], append([]byte(nil), p.payload...))
		}
	})
	c.ok(err)
	return func() map[byte][][]byte {
		c.t.Helper()
		c.ok(tap.Stop())
		return messages
	}
}

// answersTable is where a node's kernel counts what leaves its WireGuard port for others than its peers.
const answersTable = "hostile"

// countAnswers begins to count, by the type of the message.
func (c *cluster) countAnswers(n *lab.Node, peers ...*lab.Node) {
	c.t.Helper()
	var known []string
	for _, p := range peers {
		known = append(known, p.V4.String())
	}
	c.do(n.NS, "nft add table ip "+answersTable,
		"nft add chain ip "+answersTable+" out { type filter hook output priority 0 ; }")
	for kind := typeInitiation; kind <= typeData; kind++ {
		c.do(n.NS, fmt.Sprintf("nft add rule ip %s out ip daddr != { %s } udp sport %d @th,64,8 %d counter comment \"t%d\"",
			answersTable, strings.Join(known, ","), wireguardPort, kind, kind))
	}
}

// countAnswered begins to count what comes to the port from sources of which the kernel says that they had an answer:
// such connections it does not give up when its table is full.
func (c *cluster) countAnswered(n *lab.Node) {
	c.t.Helper()
	rule := fmt.Sprintf("ip saddr 203.0.113.0/24 udp dport %d ct status seen-reply", wireguardPort)
	c.do(n.NS, "nft add chain ip "+answersTable+" in { type filter hook input priority 0 ; }",
		fmt.Sprintf("nft add rule ip %s in %s counter comment \"t%d\"", answersTable, rule, answered))
}

// answered is the number that countAnswered gives its counter, beside those of the types.
const answered = 0

var answerLine = regexp.MustCompile(`counter packets (\d+) bytes \d+ comment "t(\d)"`)

// onlyCookies wants the node to have sent strangers nothing but cookies.
func (c *cluster) onlyCookies(n *lab.Node) {
	c.t.Helper()
	sent := make(map[string]string)
	for _, m := range answerLine.FindAllStringSubmatch(c.run(n.NS, "nft", "list", "table", "ip", answersTable), -1) {
		sent[m[2]] = m[1]
	}
	if len(sent) != typeData+1 || sent["1"] != "0" || sent["2"] != "0" || sent["3"] == "0" || sent["4"] != "0" {
		c.t.Errorf("messages that left for strangers, by type: %v; want cookies (3) alone", sent)
	}
	if sent["0"] != "0" {
		c.t.Errorf("%s datagrams of strangers are parts of connections that the kernel takes for answered", sent["0"])
	}
}

// metricsAddress is where a node's metrics are, inside its namespace.
const metricsAddress = "127.0.0.1:9469"

// A footprint is what a node keeps.
type footprint struct {
	rssKiB     int
	goroutines int
	tracked    int // connections that its kernel tracks
}

func (c *cluster) measure(n *lab.Node) footprint {
	c.t.Helper()
	tracked, err := n.NS.Sysctl("net/netfilter/nf_conntrack_count")
	c.ok(err)
	return footprint{
		rssKiB:     c.resident(n.Daemon()),
		goroutines: c.metric(n, "go_goroutines"),
		tracked:    c.number(regexp.MustCompile(`(\d+)`), tracked),
	}
}

// growth is by how much a node may be larger after the attack than before: Go's heap, which is collected when it has
// doubled, and the workers' buffers, which follow the size of the batches. If it kept a pointer for each hostile
// datagram, and nothing else, it would be 80 MB.
const growthKiB = 32 << 10

// noMoreThan compares with a footprint from before. Goroutines of the traffic's own come and go: that of an answer to
// whoever asks for the metrics.
func (f footprint) noMoreThan(c *cluster, before footprint) {
	c.t.Helper()
	c.t.Logf("before and after: resident %d and %d KiB, goroutines %d and %d, tracked connections %d and %d",
		before.rssKiB, f.rssKiB, before.goroutines, f.goroutines, before.tracked, f.tracked)
	if grown := f.rssKiB - before.rssKiB; grown > growthKiB && !raceEnabled { // the race detector notes every access
		c.t.Errorf("resident memory grew by %d KiB, more than %d", grown, growthKiB)
	}
	const few = 3
	if f.goroutines > before.goroutines+few {
		c.t.Errorf("%d goroutines, %d before", f.goroutines, before.goroutines)
	}
}

// running reports whether a node's daemon does.
func running(n *lab.Node) bool {
	select {
	case <-n.Daemon().Done():
		return false
	default:
		return true
	}
}

// metric reads one without labels from a node's metrics.
func (c *cluster) metric(n *lab.Node, name string) int {
	c.t.Helper()
	conn, err := n.NS.Dial(c.ctx, metricsAddress)
	c.ok(err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
	c.ok(err)
	text, err := io.ReadAll(conn)
	c.ok(err)
	return c.number(regexp.MustCompile(`(?m)^`+name+` (\d+)`), string(text))
}

// resident is a process's memory in KiB.
func (c *cluster) resident(p *lab.Proc) int {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	c.ok(err)
	return c.number(regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`), string(text))
}

// number is the one that an expression finds in a text.
func (c *cluster) number(in *regexp.Regexp, text string) int {
	c.t.Helper()
	m := in.FindStringSubmatch(text)
	if m == nil {
		c.t.Fatalf("no %s in %q", in, text)
	}
	n, err := strconv.Atoi(m[1])
	c.ok(err)
	return n
}
