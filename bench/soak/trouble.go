package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// trouble remembers when the killed node's daemon did not run.
type trouble struct {
	mu     sync.Mutex
	pod    *lab.Pod
	down   bool
	lastUp time.Time // when what was caused by the last kill has passed
	kills  int
}

// begin and end frame a kill.
func (t *trouble) begin(p *lab.Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pod, t.down = p, true
	t.kills++
}

func (t *trouble) end() {
	// Until TCP has sent again what was lost.
	const aftermath = 4 * time.Second
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down, t.lastUp = false, time.Now().Add(aftermath)
}

// met reports whether the pod's daemon was down at some time since then.
func (t *trouble) met(p *lab.Pod, since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return p == t.pod && (t.down || since.Before(t.lastUp))
}

// every is how often something happens: as often as that, and more often in a short run, so that it happens thrice.
func (r *run) every(usual time.Duration) time.Duration { return min(usual, r.Duration/4) }

// troubles lists what happens beside the traffic.
func (r *run) troubles() []task { return []task{r.kills(), r.reloads(), r.visitors()} }

// kills ends a daemon with SIGKILL and starts it again a second later.
func (r *run) kills() task {
	const name = "kill -9 and restart of c"
	t := r.tally(name)
	return func(ctx context.Context) {
		n := r.nodes[killed]
		for r.pause(ctx, r.every(4*time.Minute)) {
			r.sampler.keep(ctx, killed)
			r.trouble.begin(r.pods[killed])
			err := n.Kill()
			if err == nil {
				r.pause(ctx, time.Second)
				begin := time.Now()
				if err = n.Up(ctx); err == nil {
					t.add(0, time.Since(begin))
				}
			}
			if err != nil {
				r.broke(ctx, name, err)
				return // and everything to this node says so
			}
			r.trouble.end()
		}
	}
}

// visitor is a peer that is in the configuration now and then.
func visitor() map[string]any {
	return map[string]any{"name": "visitor", "addresses": []string{"192.0.2.199", "2001:db8::c7"},
		"podCIDRs": []string{"10.244.199.0/24", "fd00:10:244:c7::/64"}}
}

// reloads adds a peer to a node's configuration and removes it again.
func (r *run) reloads() task {
	const name = "reloads with and without a peer"
	t := r.tally(name)
	return func(ctx context.Context) {
		n := r.nodes[first]
		client := api.NewClient(filepath.Join(n.RunDir, "warren.sock"))
		with := false
		for r.pause(ctx, r.every(20*time.Second)) || with {
			with = !with
			begin := time.Now()
			if err := writePeer(n, with); err != nil {
				r.broke(ctx, name, err)
				return
			}
			if err := waitPeer(ctx, client, with, begin); err != nil {
				r.broke(ctx, name, err)
				return
			}
			t.add(0, time.Since(begin))
		}
	}
}

// writePeer replaces a node's configuration by one with or without the visitor.
func writePeer(n *lab.Node, with bool) error {
	content, err := os.ReadFile(n.ConfigFile)
	if err != nil {
		return err
	}
	var file map[string]any
	if err := yaml.Unmarshal(content, &file); err != nil {
		return err
	}
	nodes, _ := file["nodes"].([]any)
	nodes = slices.DeleteFunc(nodes, func(entry any) bool {
		m, ok := entry.(map[string]any)
		return ok && m["name"] == visitor()["name"]
	})
	if with {
		nodes = append(nodes, visitor())
	}
	file["nodes"] = nodes
	if content, err = yaml.Marshal(file); err != nil {
		return err
	}
	return atomicfile.Replace(n.ConfigFile, content, 0o644)
}

// waitPeer waits until the daemon knows the visitor, or does not, by a reload after the change of the file.
func waitPeer(ctx context.Context, client *api.Client, with bool, changed time.Time) error {
	const wait = 5 * time.Second
	for deadline := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		peers, err := client.Peers(ctx)
		if err != nil {
			return err
		}
		status, err := client.Status(ctx)
		if err != nil {
			return err
		}
		known := slices.ContainsFunc(peers, func(p api.Peer) bool { return p.Name == visitor()["name"] })
		if l := status.LastReload; known == with && l != nil && !l.Time.Before(changed) {
			if l.Error+l.Incomplete != "" || len(l.NeedsRestart) > 0 {
				return fmt.Errorf("the reload was not applied in full: %+v", *l)
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%v after the file changed, the peer is known: %v, should be: %v; the last reload: %+v", wait,
				known, with, status.LastReload)
		}
	}
}

// visitors adds pods, lets each send and receive, and deletes them.
func (r *run) visitors() task {
	const name = "pods added and deleted at b"
	const bytes = 1 << 20
	t := r.tally(name)
	return func(ctx context.Context) {
		for r.pause(ctx, r.every(15*time.Second)) {
			begin := time.Now()
			if err := r.visit(ctx, bytes); err != nil {
				r.broke(ctx, name, err)
				continue
			}
			t.add(2*bytes, time.Since(begin))
		}
	}
}

func (r *run) visit(ctx context.Context, bytes int64) error {
	pod, err := r.nodes[second].AddPod(ctx, "visitor", lab.PodOptions{})
	if err != nil {
		return err
	}
	for _, p := range []lab.Path{between(r.pods[first], pod, 4), between(pod, r.pods[first], 6)} {
		transfer, err := lab.StartTransfer(ctx, p, lab.TransferOptions{Bytes: bytes})
		if err != nil {
			return fmt.Errorf("%w (and the pod stays)", err)
		}
		if _, err := transfer.Wait(); err != nil {
			return fmt.Errorf("%w (and the pod stays)", err)
		}
	}
	return pod.Delete(ctx, lab.PodOptions{})
}
