package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-net/warren/internal/lab"
)

// TestPodsWhileRestarting restarts the daemon in every way that there is, while TCP connections run and pods come and
// go all the time: no ADD and no DEL fails, no connection breaks, a pod that was added while no daemon ran works as
// soon as one does, and STATUS says what is the matter meanwhile.
func TestPodsWhileRestarting(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, mode)
			o := lab.PodOptions{Mode: mode}
			p.talks()
			p.ready(p.a)
			var echoes []*lab.Echo
			for _, path := range []lab.Path{between(p.a1, p.b1, 4), between(p.b1, p.a2, 6), between(p.a1, p.a2, 4)} {
				e, err := lab.StartEcho(p.ctx, path, 5*time.Millisecond)
				p.ok(err)
				echoes = append(echoes, e)
			}
			transfer, err := lab.StartTransfer(p.ctx, between(p.a2, p.b1, 4), lab.TransferOptions{BytesPerSecond: 5 << 20})
			p.ok(err)
			churn := p.startChurn(p.a, o)
			for _, end := range []struct {
				name, status string
				do           func()
			}{
				{"kill -9", "nobody serves device warren0", func() { p.ok(p.a.Kill()) }},
				{"SIGTERM, onExit remove", "device warren0 does not exist", func() { p.ok(p.a.Down(p.ctx)) }},
				{"SIGTERM, onExit leave", "nobody serves device warren0", func() { p.ok(p.a.Down(p.ctx)) }},
			} {
				if strings.HasSuffix(end.name, "leave") {
					p.ok(p.a.Kill()) // its file must not be changed while it runs
					p.edit(p.a, set("onExit", "leave"))
					p.ok(p.a.Up(p.ctx))
				}
				end.do()
				p.unready(p.a, end.status)
				between := p.podWith(p.a, "between", o)
				churn.passes(3)
				p.ok(p.a.Up(p.ctx))
				p.ready(p.a)
				for _, e := range echoes {
					if err := e.WaitAnswered(p.ctx); err != nil {
						t.Errorf("after %s: %v", end.name, err)
					}
				}
				for _, f := range families() {
					for _, r := range []road{{"", between.NS, p.b1.Address(f)}, {"", p.a1.NS, between.Address(f)},
						{"", between.NS, outside(f)}} {
						p.eventually(func() error {
							_, err := r.from.Ping(p.ctx, r.to, lab.Ping{Count: 1})
							return err
						})
					}
				}
				churn.passes(3)
				p.ok(between.Delete(p.ctx, o))
			}
			churn.end()
			transfer.Finish()
			if _, err := transfer.Wait(); err != nil {
				t.Error(err)
			}
			for _, e := range echoes {
				if err := e.Stop(); err != nil {
					t.Error(err)
				}
			}
			p.ok(errors.Join(p.a1.Delete(p.ctx, o), p.a2.Delete(p.ctx, o)))
			if links := p.run(p.a.NS, "ip", "-br", "link"); strings.Contains(links, "wrn") {
				t.Errorf("left behind:\n%s", links)
			}
			if left := listing(t, filepath.Join(p.a.StateDir, "cni", "pods")); strings.Contains(left, ".json") {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
}

// status asks the plugin through libcni whether the node is ready, as containerd 2 does before it reports a node ready.
func (c *cluster) cniStatus(n *lab.Node) error {
	c.t.Helper()
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion": "1.1.0", "name": "warren", "plugins": [{"type": "warren-cni", "runDir": %q, "stateDir": %q}]}`,
		n.RunDir, n.StateDir))
	c.ok(err)
	config := libcni.NewCNIConfigWithCacheDir([]string{binDir()}, filepath.Join(n.Dir, "cache"), nil)
	return n.NS.Do(func() error { return config.GetStatusNetworkList(c.ctx, list) })
}

func (c *cluster) ready(n *lab.Node) {
	c.t.Helper()
	if err := c.cniStatus(n); err != nil {
		c.t.Errorf("STATUS of a node that runs: %v", err)
	}
}

// unready wants STATUS to say that pods can be added and have limited connectivity, and why.
func (c *cluster) unready(n *lab.Node, why string) {
	c.t.Helper()
	err := c.cniStatus(n)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != types.ErrLimitedConnectivity || !strings.Contains(e.Msg, why) {
		c.t.Errorf("STATUS says %v, want code %d and %q", err, types.ErrLimitedConnectivity, why)
	}
}

// TestStatusOfRealNode asks for the status from before the first start to after the last stop.
func TestStatusOfRealNode(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	c.configure()
	unavailable := func(when string) {
		t.Helper()
		var e *types.Error
		if err := c.cniStatus(a); !errors.As(err, &e) || e.Code != types.ErrPluginNotAvailable ||
			!strings.Contains(e.Msg, "`warren up`") {
			t.Errorf("%s: %v", when, err)
		}
	}
	unavailable("before the first start")
	c.up(a)
	c.ready(a)
	c.do(a.NS, "ip link set warren0 down")
	c.eventually(func() error { return c.cniStatus(a) }) // the daemon sets it up again
	c.ok(a.Down(c.ctx))
	unavailable("after an orderly stop without pods")
	c.up(a)
	c.ready(a)
}

// A churn adds and deletes pods on a node all the time.
type churn struct {
	c      *cluster
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	rounds chan struct{}
}

// startChurn starts two of them, as runtimes work in parallel.
func (c *cluster) startChurn(n *lab.Node, o lab.PodOptions) *churn {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	k := &churn{c: c, cancel: cancel, rounds: make(chan struct{})}
	c.t.Cleanup(k.end) // before the lab is closed
	for i := range 2 {
		k.tasks.Go(func() {
			for round := 0; ctx.Err() == nil; round++ {
				// An ADD or DEL that has begun is not cut off: what is judged is whether they succeed.
				p, err := n.AddPod(c.ctx, fmt.Sprintf("churn%d", i), o)
				if err == nil {
					err = errors.Join(reaches(c.ctx, n, p), p.Delete(c.ctx, o))
				}
				if err != nil {
					c.t.Errorf("round %d of churn %d: %v", round, i, err)
					return
				}
				select {
				case k.rounds <- struct{}{}:
				default:
				}
			}
		})
	}
	return k
}

// reaches reports why a node doesn't reach its own pod, which it does without the daemon too. A packet that is under
// way while the daemon takes the gateway address away has lost its sender, so there is more than one.
func reaches(ctx context.Context, n *lab.Node, p *lab.Pod) error {
	for i := 1; ; i++ {
		_, err := n.NS.Ping(ctx, p.V4, lab.Ping{Count: 1})
		if err == nil || i == 5 {
			return err
		}
	}
}

// passes waits for so many pods that came and went. A pod may have come before.
func (k *churn) passes(rounds int) {
	k.c.t.Helper()
	for range rounds {
		select {
		case <-k.rounds:
		case <-time.After(20 * time.Second):
			k.c.t.Fatal("no pod came and went for 20 s")
		}
	}
}

func (k *churn) end() {
	k.cancel()
	k.tasks.Wait()
}
