package node

import (
	"time"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/config"
)

// Check looks at the host, and at the files with keys, for what would keep a node with this configuration from working.
// It changes nothing, and may be called beside a running node.
func Check(cfg *config.Config) []hostnet.Finding {
	peers := cfg.Peers(cfg.State)
	env := hostnet.Environment{Spec: specOf(cfg)}
	env.Spec.Guarded = new(direct).guards(cfg, time.Now())
	if uses(cfg, peers, false) {
		env.VXLANPort = cfg.PortOf(&cfg.Self)
	}
	if uses(cfg, peers, true) {
		env.WireGuardPort = cfg.WireGuardPortOf(&cfg.Self)
	}
	return append(hostnet.Check(env), checkKeys(cfg)...)
}
