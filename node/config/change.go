package config

import (
	"fmt"
	"slices"
)

// NeedsRestart names the settings that differ between the running configuration and a new one and that cannot change
// while the node runs: "device: warren0 → warren1". Everything else in the new file can be applied.
func (c *Config) NeedsRestart(next *Config) []string {
	var out []string
	add := func(key string, old, new any) {
		if a, b := fmt.Sprint(old), fmt.Sprint(new); a != b {
			out = append(out, fmt.Sprintf("%s: %s → %s", key, a, b))
		}
	}
	add("node", c.Node, next.Node)
	add("addresses of this node", joined(c.Self.Addresses), joined(next.Self.Addresses))
	add("podCIDRs of this node", joined(c.Self.PodCIDRs), joined(next.Self.PodCIDRs))
	add("mac of this node", c.Self.MAC, next.Self.MAC)
	add("device", c.Device, next.Device)
	add("mtu", c.MTU, next.MTU)
	add("encapsulation", c.Encapsulation, next.Encapsulation)
	add("vxlan.vni", c.VNI, next.VNI)
	add("vxlan.port", c.Port, next.Port)
	add("port of this node", c.PortOf(&c.Self), next.PortOf(&next.Self))
	add("workers", c.Workers, next.Workers)
	add("offloads", c.Offloads, next.Offloads)
	add("routing.table", c.Table, next.Table)
	add("routing.rulePriority", c.RulePriority, next.RulePriority)
	add("metrics", c.Metrics, next.Metrics)
	add("runDir", c.RunDir, next.RunDir)
	add("stateDir", c.StateDir, next.StateDir)
	add("log.format", c.LogFormat, next.LogFormat)
	return out
}

// Adopt returns the running configuration with everything from next that may change while the node runs: the
// cluster's ranges, the other nodes, masquerade, onExit and the log level.
func (c *Config) Adopt(next *Config) *Config {
	out := *c
	out.Cluster = next.Cluster
	out.State.Nodes = append(slices.Clone(next.Peers(next.State)), c.Self)
	out.Masquerade, out.OnExit, out.LogLevel = next.Masquerade, next.OnExit, next.LogLevel
	return &out
}
