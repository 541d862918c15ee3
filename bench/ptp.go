package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// ptp is the CNI project's plugin of that name with its own address store, host-local: a point-to-point veth pair for
// each pod, as Warren's mode `routed` makes it. It attaches pods to one node, and has no part in what joins nodes.
type ptp struct {
	dir     string // where it is built
	bin     string // holds ptp and host-local
	program string
}

// Name is the system's name in the report.
func (*ptp) Name() string { return "ptp" }

// Program says what is measured.
func (p *ptp) Program() string { return p.program }

// Subjects is what it has a part in.
func (*ptp) Subjects() []Subject { return []Subject{AboutPlugin} }

// Prepare builds it.
func (p *ptp) Prepare(ctx context.Context) (err error) {
	p.program, p.bin, err = goProgram{
		module: "github.com/containernetworking/plugins", versions: []string{"v1.9.1"},
		packages: []string{"plugins/main/ptp", "plugins/ipam/host-local"},
	}.install(ctx, p.dir)
	return err
}

// Up says how its pods are attached. What it leaves undone in its default form stays undone: it neither masquerades nor
// checks what a pod sends.
func (p *ptp) Up(_ context.Context, b *Bed) (*Path, error) {
	n := b.Nodes[0]
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "mtu": b.PodMTU(),
		"ipam": map[string]any{
			"type": "host-local", "dataDir": n.StateDir, "routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
			"ranges": []any{[]any{map[string]any{"subnet": n.PodCIDRs[0]}}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("configuration of ptp: %w", err)
	}
	return &Path{Plugin: &Plugin{Binary: filepath.Join(p.bin, "ptp"), Conf: string(conf), State: n.StateDir}}, nil
}
