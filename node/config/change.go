package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/control"
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
	add("control", c.Control, next.Control)
	add("kubernetes", c.Kubernetes, next.Kubernetes)
	add("etcd", c.Etcd, next.Etcd)
	add("node", c.Node, next.Node)
	if c.Control != Static && len(next.Cluster) > 0 {
		add("cluster", joined(c.Cluster), joined(next.Cluster))
	}
	if c.Control == Static {
		add("addresses of this node", joined(c.Self.Addresses), joined(next.Self.Addresses))
		add("podCIDRs of this node", joined(c.Self.PodCIDRs), joined(next.Self.PodCIDRs))
		add("mac of this node", c.Self.MAC, next.Self.MAC)
	}
	add("device", c.Device, next.Device)
	add("mtu", c.MTU, next.MTU)
	add("vxlan.vni", c.VNI, next.VNI)
	add("vxlan.port", c.Port, next.Port)
	add("port of this node", c.PortOf(&c.Self), next.PortOf(&next.Self))
	add("wireguard.port", c.WireGuardPort, next.WireGuardPort)
	add("wireguardPort of this node", c.WireGuardPortOf(&c.Self), next.WireGuardPortOf(&next.Self))
	add("workers", c.Workers, next.Workers)
	add("express", switched(c.Express), switched(next.Express))
	add("moderation", switched(c.Moderation), switched(next.Moderation))
	now := offloadSwitches(new(rawOffloads), &c.Offloads)
	for k, then := range offloadSwitches(new(rawOffloads), &next.Offloads) {
		add("offloads."+then.key, c.Offloads.mode(&now[k]), next.Offloads.mode(&then))
	}
	add("routing.table", c.Table, next.Table)
	add("routing.rulePriority", c.RulePriority, next.RulePriority)
	add("metrics", c.Metrics, next.Metrics)
	add("runDir", c.RunDir, next.RunDir)
	add("stateDir", c.StateDir, next.StateDir)
	add("log.format", c.LogFormat, next.LogFormat)
	return out
}

// Adopt returns the running configuration with everything from next that may change while the node runs: the
// cluster's ranges, the other nodes and the peers, this node's public key and encapsulation, masquerade, onExit and the
// log level. What else this node is stays as it is until a restart, and next may fit that no longer (another node got
// this one's pod CIDR): then nothing can be adopted, and the error says why.
func (c *Config) Adopt(next *Config) (*Config, error) {
	out := *c
	if c.Control != next.Control {
		return nil, fmt.Errorf("%s: `control` was %s and is now %s; nothing of the new configuration is applied: restart "+
			"warren", c.File, c.Control, next.Control)
	}
	out.Masquerade, out.OnExit, out.LogLevel = next.Masquerade, next.OnExit, next.LogLevel
	out.PresharedKeyFile, out.PersistentKeepalive = next.PresharedKeyFile, next.PersistentKeepalive
	if c.Control != Static {
		// The rest the control plane says, and what this node is to the others. Of what it asks for itself, Own, only Direct
		// goes at once.
		out.Self.PresharedKeyFile, out.Own, out.State = next.PresharedKeyFile, next.Own, next.State
		return &out, nil
	}
	out.Cluster = next.Cluster
	// By the running name: next may call this node by another one's.
	peers := c.Peers(next.State)
	own := func(n control.Node) bool { return n.Name == c.Node && !n.Roams }
	if i := slices.IndexFunc(next.State.Nodes, own); i >= 0 {
		n := &next.State.Nodes[i]
		out.Self.PublicKey, out.Self.Encapsulation, out.Self.PresharedKeyFile = n.PublicKey, n.Encapsulation,
			n.PresharedKeyFile
	}
	if err := out.fits(next.Cluster, peers); err != nil {
		return nil, fmt.Errorf("%s: %w; nothing of the new configuration is applied: restart warren", c.File, err)
	}
	out.State.Nodes = append(peers, out.Self)
	return &out, nil
}

// fits reports what of this node, as it runs, contradicts new ranges of the cluster and new peers.
func (c *Config) fits(cluster []netip.Prefix, peers []control.Node) error {
	for _, own := range c.Self.PodCIDRs {
		inside := func(r netip.Prefix) bool { return r.Bits() <= own.Bits() && r.Contains(own.Addr()) }
		if !slices.ContainsFunc(cluster, inside) {
			return fmt.Errorf("pod CIDR %s, which this node has until a restart, is outside the cluster's new ranges %s", own,
				joined(cluster))
		}
	}
	for _, own := range c.Self.Addresses {
		for _, r := range cluster {
			if r.Contains(own) {
				return fmt.Errorf("address %s, which this node has until a restart, is inside the cluster's new range %s", own, r)
			}
		}
	}
	for _, p := range peers {
		if own := c.Self.PublicKey; !own.IsZero() && own == p.PublicKey {
			return fmt.Errorf("publicKey %s of %s is the one that this node has until a restart", own, called(&p))
		}
		for _, own := range c.Self.PodCIDRs {
			if i := slices.IndexFunc(p.PodCIDRs, own.Overlaps); i >= 0 {
				return fmt.Errorf("pod CIDR %s of %s overlaps %s, which this node has until a restart", p.PodCIDRs[i],
					called(&p), own)
			}
		}
		for _, own := range c.Self.Addresses {
			if slices.Contains(p.Addresses, own) {
				return fmt.Errorf("address %s of node %s is the one that this node has until a restart", own, p.Name)
			}
		}
		if !p.Roams && !shareFamily(c.Self.Addresses, p.Addresses) {
			return fmt.Errorf("address %s of node %s has no family in common with %s, which this node has until a restart",
				joined(p.Addresses), p.Name, joined(c.Self.Addresses))
		}
	}
	return nil
}

func called(n *control.Node) string {
	if n.Roams {
		return "peer " + n.Name
	}
	return "node " + n.Name
}

// switched spells a switch as the file does.
func switched(on bool) string {
	if on {
		return "auto"
	}
	return "off"
}
