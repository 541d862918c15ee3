package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/yamldoc"
)

const (
	maxVNI     = 1<<24 - 1 // RFC 7348, 5: 24 bits
	maxMTU     = 65535     // what the 16-bit lengths of IP can say
	maxWorkers = 256       // MAX_TAP_QUEUES of the kernel's TUN driver
	maxDevice  = 15        // IFNAMSIZ less its terminating zero
	maxSocket  = 107       // sun_path of a Unix socket less its terminating zero
	ruleCount  = 4         // rules at RulePriority and the three after it
	mainRule   = 32766     // priority of the kernel's rule `lookup main`
)

// A checker fills out from raw, key by key.
type checker struct {
	doc *yamldoc.Doc
	raw *raw
	out Config
	own string // key of this node's entry
}

func (c *checker) wrong(key string, value any, why, fix string) error {
	return c.doc.Error(yamldoc.Finding{Key: key, Value: fmt.Sprint(value), Why: why, Fix: fix})
}

func (c *checker) vxlan() error {
	if v := c.raw.VXLAN.VNI; v < 0 || v > maxVNI {
		return c.wrong("vxlan.vni", v, "does not fit the 24 bits of a VXLAN network identifier",
			fmt.Sprintf("use 0 to %d, the same on every node", maxVNI))
	}
	p := c.raw.VXLAN.Port
	if p < 1 || p > 65535 {
		return c.wrong("vxlan.port", p, "is not a UDP port", "use 1 to 65535; 4789 is VXLAN's own")
	}
	c.out.Port = uint16(p)
	return nil
}

func (c *checker) control() error {
	c.out.Control = Control(c.raw.Control)
	switch c.out.Control {
	case Static:
		if len(c.raw.Addresses) > 0 {
			return c.wrong("addresses", c.raw.Addresses[0], "is for control planes that nodes tell of themselves",
				"write the address into this node's entry of `nodes`")
		}
		return nil
	case Kubernetes:
		return c.kubernetes()
	case Etcd:
		return c.raw.Etcd.Check(c.doc, "etcd")
	}
	return c.wrong("control", c.raw.Control, "is not a control plane",
		"use static (the nodes stand in this file), etcd or kubernetes")
}

func (c *checker) kubernetes() error {
	if len(c.raw.Cluster) == 0 {
		return c.wrong("cluster", "", "the cluster's address ranges are missing",
			"list what kube-controller-manager has as --cluster-cidr, for example [10.244.0.0/16]")
	}
	return c.raw.Kubernetes.Check(c.doc, "kubernetes")
}

// self finds this node in the list.
func (c *checker) self() error {
	nodes := c.out.State.Nodes
	if c.out.Control != Static {
		c.out.Self, c.out.Own, c.own = nodes[0], nodes[0], "wireguard"
		c.out.State.Nodes = nodes[1:]
		return nil
	}
	i := slices.IndexFunc(nodes, func(n control.Node) bool { return n.Name == c.out.Node })
	if i >= 0 && !nodes[i].Roams {
		c.out.Self, c.own = nodes[i], fmt.Sprintf("nodes[%d]", i)
		return nil
	}
	names := make([]string, 0, len(nodes))
	for _, n := range nodes {
		if !n.Roams {
			names = append(names, n.Name)
		}
	}
	key, list, why, fix := "node", "nodes", "is not in the list of nodes", "add it to `nodes` with its pod CIDR"
	if i >= 0 {
		list, why = "peers", "is a peer, not a node: any WireGuard runs there, as `warren peer config` says"
		fix = "move it from `peers` to `nodes` with a pod CIDR"
	}
	if c.raw.Node == "" {
		key, why = list, "(this host's name, as `node` is not set) "+why
	}
	return c.wrong(key, c.out.Node, why, fix+", or set `node` to one of "+strings.Join(names, ", "))
}

// ports refuses one port for both tunnels of this node.
func (c *checker) ports() error {
	p := c.out.WireGuardPortOf(&c.out.Self)
	if p != c.out.PortOf(&c.out.Self) {
		return nil
	}
	key := "wireguard.port"
	if c.out.Self.WireGuardPort != 0 {
		key = c.own + ".wireguardPort"
	}
	return c.wrong(key, p, "is the port of this node's VXLAN tunnel too", "use another; 51820 is WireGuard's usual one")
}

// families refuses a node that this one could never send to, or whose pods could never talk with its own.
func (c *checker) families() error {
	self := c.out.Self
	for i, n := range c.out.State.Nodes {
		if n.Roams { // it calls, by whatever family it has
			continue
		}
		key := fmt.Sprintf("nodes[%d]", i)
		if !shareFamily(self.Addresses, n.Addresses) {
			return c.wrong(key+".addresses", joined(n.Addresses),
				fmt.Sprintf("of node %s: no common address family with this node %s (%s)", n.Name, self.Name,
					joined(self.Addresses)),
				"give both nodes an address of one family")
		}
		if !shareFamily(networks(self.PodCIDRs), networks(n.PodCIDRs)) {
			return c.wrong(key+".podCIDRs", joined(n.PodCIDRs),
				fmt.Sprintf("of node %s: no common address family with the pods of this node %s (%s)", n.Name, self.Name,
					joined(self.PodCIDRs)),
				"give both nodes a pod CIDR of one family")
		}
	}
	return nil
}

func shareFamily(a, b []netip.Addr) bool {
	for _, x := range a {
		if slices.ContainsFunc(b, func(y netip.Addr) bool { return x.Is4() == y.Is4() }) {
			return true
		}
	}
	return false
}

func networks(list []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, 0, len(list))
	for _, p := range list {
		out = append(out, p.Addr())
	}
	return out
}

func joined[T fmt.Stringer](list []T) string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return strings.Join(out, ", ")
}

func (c *checker) device() error {
	d := c.out.Device
	switch {
	case d == "" || d == "." || d == "..":
		return c.wrong("device", d, "is not an interface name", "use a name such as warren0")
	case len(d) > maxDevice:
		return c.wrong("device", d, fmt.Sprintf("has %d bytes, but an interface name has at most %d", len(d), maxDevice),
			"shorten it")
	case strings.ContainsFunc(d, badDeviceRune):
		return c.wrong("device", d, "has a character that interface names cannot have",
			"use letters, digits, dots, hyphens and underscores")
	case strings.HasPrefix(d, podrecord.HostPrefix):
		return c.wrong("device", d, "begins with "+podrecord.HostPrefix+", as the pods' interfaces on this host do",
			"use a name such as warren0")
	case d == "all" || d == "default" || d == "lo":
		return c.wrong("device", d, "is a name that the kernel keeps for itself", "use a name such as warren0")
	}
	return nil
}

// badDeviceRune is stricter than the kernel, which refuses slashes, colons, percent signs and blanks only: names end
// up in sysctl paths, nftables rules and shell commands.
func badDeviceRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
}

func (c *checker) mtu() error {
	m, least := c.out.MTU, c.out.MinMTU()
	switch {
	case m == 0:
		return nil
	case m < least && least == MinMTU6:
		return c.wrong("mtu", m,
			fmt.Sprintf("is below %d, the minimum of IPv6 (RFC 8200), which this node's pods have", MinMTU6),
			"raise it, or leave it 0 for the underlay's less 80")
	case m < least:
		return c.wrong("mtu", m,
			fmt.Sprintf("is below %d, which every IPv4 host must be able to receive (RFC 791)", MinMTU4),
			"raise it, or leave it 0 for the underlay's less 80")
	case m > maxMTU:
		return c.wrong("mtu", m, fmt.Sprintf("is above %d, the longest IP packet", maxMTU),
			"lower it, or leave it 0 for the underlay's less 80")
	}
	return nil
}

func (c *checker) workers() error {
	if w := c.out.Workers; w < 0 || w > maxWorkers {
		return c.wrong("workers", w, "is not a number of workers",
			fmt.Sprintf("use 1 to %d, or 0 for one per CPU, at most 8", maxWorkers))
	}
	return nil
}

func (c *checker) express() error {
	return c.autoOrOff("express", c.raw.Express, "quiet flows have a worker of their own")
}

func (c *checker) moderation() error {
	return c.autoOrOff("moderation", c.raw.Moderation, "pauses while processors are short")
}

// autoOrOff checks a switch; auto is what that one does.
func (c *checker) autoOrOff(key, value, auto string) error {
	if value != "auto" && value != "off" {
		return c.wrong(key, value, "is neither auto nor off", fmt.Sprintf("write auto (%s) or off", auto))
	}
	return nil
}

func (c *checker) offloads() error {
	o := &c.out.Offloads
	for _, k := range offloadSwitches(&c.raw.Offloads, o) {
		switch {
		case *k.said == "auto":
			*k.use = true
		case *k.said == "on" && k.use == &o.TunnelGSO:
			*k.use, o.AnyDriver = true, true
		case *k.said == "off":
		case k.use == &o.TunnelGSO:
			return c.wrong("offloads."+k.key, *k.said, "is neither auto, on nor off",
				"write auto (used with the drivers it was tried with), on (with any that says it cuts) or off")
		case k.use == &o.Superframes:
			return c.wrong("offloads."+k.key, *k.said, "is neither auto nor off",
				"write auto (used with peers that take them) or off")
		default:
			return c.wrong("offloads."+k.key, *k.said, "is neither auto nor off",
				"write auto (used where the kernel has it) or off")
		}
	}
	return nil
}

func (c *checker) routing() error {
	switch t := c.out.Table; {
	case t < 1 || t > 1<<31-1:
		return c.wrong("routing.table", t, "is not a routing table",
			"use a number of 1 to 2147483647 that nothing else uses")
	case t >= 253 && t <= 255:
		return c.wrong("routing.table", t, "is one of the kernel's own tables (default, main, local)",
			"use a number that nothing else uses")
	}
	if p := c.out.RulePriority; p < 1 || p+ruleCount > mainRule {
		return c.wrong("routing.rulePriority", p, "leaves no room for four rules between the kernel's own at 0 and 32766",
			fmt.Sprintf("use 1 to %d", mainRule-ruleCount))
	}
	return nil
}

func (c *checker) metrics() error {
	m := c.out.Metrics
	if m == "" {
		return nil
	}
	const fix = "write it as 127.0.0.1:9187 or [::1]:9187, or leave it empty for no metrics"
	host, port, err := net.SplitHostPort(m)
	if err != nil {
		return c.wrong("metrics", m, "is not an address with a port", fix)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return c.wrong("metrics", m, "has no valid TCP port", fix)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return c.wrong("metrics", m, "has no IP address before the port", fix)
		}
	}
	return nil
}

func (c *checker) directories() error {
	for _, d := range []struct{ key, path, like string }{
		{"runDir", c.out.RunDir, defaults().RunDir}, {"stateDir", c.out.StateDir, defaults().StateDir},
	} {
		if !filepath.IsAbs(d.path) || filepath.Clean(d.path) == "/" {
			return c.wrong(d.key, d.path, "is not an absolute path to a directory of Warren's own", "write it as "+d.like)
		}
	}
	c.out.RunDir, c.out.StateDir = filepath.Clean(c.out.RunDir), filepath.Clean(c.out.StateDir)
	if n := len(c.out.SocketPath()); n > maxSocket {
		return c.wrong("runDir", c.out.RunDir,
			fmt.Sprintf("makes the socket's path %d bytes long, but the kernel takes %d", n, maxSocket),
			"use a shorter path")
	}
	return nil
}

func (c *checker) onExit() error {
	switch c.out.OnExit {
	case Remove, Leave:
		return nil
	}
	return c.wrong("onExit", c.out.OnExit, "is neither remove nor leave",
		"write remove (take everything away at the end) or leave (for a successor)")
}

func (c *checker) log() error {
	level, err := ParseLevel(c.raw.Log.Level)
	if err != nil {
		return c.wrong("log.level", c.raw.Log.Level, "is not a log level", "use debug, info, warn or error")
	}
	c.out.LogLevel = level
	switch c.out.LogFormat {
	case "text", "json":
		return nil
	}
	return c.wrong("log.format", c.out.LogFormat, "is not a log format", "use text or json")
}

// ParseLevel reads a log level: debug, info, warn or error.
func ParseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q: use debug, info, warn or error", s)
}
