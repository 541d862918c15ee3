package node

import (
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/config"
)

// Check looks at the host for what would keep a node with this configuration from working. It changes nothing, and may
// be called beside a running node.
func Check(cfg *config.Config) []hostnet.Finding {
	return hostnet.Check(hostnet.Environment{Spec: specOf(cfg), Port: cfg.PortOf(&cfg.Self)})
}
