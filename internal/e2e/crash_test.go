package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// TestKilledWhileStarting kills `warren up` at random moments of its start, as often as not before it is done. The next
// start makes of whatever was left what a first start makes, nothing twice, and its orderly end leaves nothing.
func TestKilledWhileStarting(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	c.configure()
	c.up(b)
	far := c.pod(b, "1")
	before := c.state(a.NS)
	begin := time.Now()
	c.up(a)
	took := time.Since(begin)
	running := c.state(a.NS)
	c.ok(a.Down(c.ctx))
	c.same(a.NS, before)

	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i := range 20 {
		// A start is quickest when nothing is there; the moments are spread over more than that.
		after := time.Duration(random.Int64N(int64(took) * 5 / 4))
		p, err := c.lab.Start(a.NS, fmt.Sprint("killed", i), warren(), "up", "--config", a.ConfigFile)
		c.ok(err)
		time.Sleep(after)
		c.ok(p.Kill())
		if i%5 != 4 {
			continue // several in a row: the next one starts over what a killed one left
		}
		c.up(a)
		c.same(a.NS, running)
		c.ping(a.NS, far.V4, lab.Ping{Count: 1})
		c.ping(a.NS, far.V6, lab.Ping{Count: 1})
		c.ok(a.Down(c.ctx))
		c.same(a.NS, before)
		if t.Failed() {
			t.Fatalf("after kill number %d, the last one %v after the start (of %v)", i+1, after, took)
		}
	}
	// A killed start and no other: `warren down` removes what is left of it.
	p, err := c.lab.Start(a.NS, "killed", warren(), "up", "--config", a.ConfigFile)
	c.ok(err)
	time.Sleep(took)
	c.ok(p.Kill())
	if _, err := a.Warren(c.ctx, "down"); err != nil {
		t.Error(err)
	}
	c.same(a.NS, before)
	if left := listing(t, a.RunDir); left != a.RunDir {
		t.Errorf("left in the run directory:\n%s", left)
	}
}
