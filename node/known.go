package node

import (
	"slices"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/remember"
	"github.com/warren-net/warren/node/config"
)

// Known is the configuration of a node with what its control plane said of the cluster as far as that was written down:
// for whoever asks without a running node, and whether a node runs or not. Where the file lists the nodes it is the
// same.
func Known(cfg *config.Config) (*config.Config, error) {
	if cfg.Control == config.Static {
		return cfg, nil
	}
	known, err := remember.Read(cfg.StateDir)
	if err != nil || known == nil || known.Node != cfg.Node {
		return cfg, err
	}
	i := slices.IndexFunc(known.Nodes, func(n control.Node) bool { return n.Name == cfg.Node })
	if i < 0 {
		return cfg, nil
	}
	out, err := cfg.With(known.Nodes[i], rangesOf(known.CIDRs, &known.Nodes[i]))
	if err != nil {
		return cfg, err
	}
	nodes := slices.DeleteFunc(known.Nodes, func(n control.Node) bool {
		named := func(o control.Node) bool { return o.Name == n.Name }
		return n.Roams || slices.ContainsFunc(cfg.State.Nodes, named) // the file's hold, see control.Ledger
	})
	out.State.Nodes = append(nodes, cfg.State.Nodes...)
	return out, nil
}
