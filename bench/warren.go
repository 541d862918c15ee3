package bench

import (
	"context"

	"github.com/warren-net/warren/internal/lab"
)

// warrenSystem is Warren itself: the daemon on each node, pods attached by the plugin, everything at its default but
// the encapsulation and the pods' MTU.
type warrenSystem struct{ encapsulation string }

// Name is the system's name in the report.
func (w warrenSystem) Name() string { return "warren-" + w.encapsulation }

// Prepare has nothing to do: `make bench` builds Warren, and Up says when it is missing.
func (warrenSystem) Prepare(context.Context) error { return nil }

// Up starts the daemons and adds the pods.
func (w warrenSystem) Up(ctx context.Context, b *Bed) (*Path, error) {
	for _, n := range b.Nodes {
		n.Settings.Encapsulation, n.Settings.MTU = w.encapsulation, b.PodMTU()
	}
	if err := b.Lab.WriteConfigs(); err != nil {
		return nil, err
	}
	p := &Path{Device: "warren0"}
	for i, n := range b.Nodes {
		if err := n.Up(ctx); err != nil {
			return nil, err
		}
		p.Procs = append(p.Procs, n.Daemon())
		pod, err := n.AddPod(ctx, "pod", lab.PodOptions{})
		if err != nil {
			return nil, err
		}
		p.Ends[i] = End{NS: pod.NS, Addr: pod.V4}
	}
	near, err := b.Nodes[0].AddPod(ctx, "near", lab.PodOptions{})
	if err != nil {
		return nil, err
	}
	p.Neighbour = &End{NS: near.NS, Addr: near.V4}
	p.Near = []Hop{{Device: p.Device, Sent: true}, {Device: p.Device}}
	return p, nil
}
