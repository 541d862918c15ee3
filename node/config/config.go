// Package config is Warren's configuration file: what it may say, the defaults of what it leaves out, and every check
// that can be made without looking at the host. The list of nodes in it is control/static's.
//
// A Config is immutable once Load or Parse returned it. Every error about the file is a *yamldoc.Error: it names the
// file, the line, the key, the wrong value, why it is wrong and what would be right.
package config

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/kubernetes"
	"github.com/warren-net/warren/control/static"
	"github.com/warren-net/warren/internal/apisocket"
	"github.com/warren-net/warren/internal/yamldoc"
)

// DefaultPath is where the file is looked for.
const DefaultPath = "/etc/warren/warren.yaml"

// DefaultStateDir is the state directory of a file that names no other.
const DefaultStateDir = "/var/lib/warren"

// The least MTU that pods may get, in bytes. The protocols' own minima are 68 for IPv4 (RFC 791) and 1280 for IPv6
// (RFC 8200, 5). Nothing works at 68 any more, so for IPv4 it is 576, what every IPv4 host has to be able to receive.
const (
	MinMTU4 = 576
	MinMTU6 = 1280
)

// PodMTUMargin is how much smaller than the underlay's MTU the pods' is by default, in bytes. It is more than VXLAN
// takes, and the same for every encapsulation, so that changing that is invisible to pods.
const PodMTUMargin = 80

// Config is the whole configuration of one node.
type Config struct {
	File    string         // path of the file; for messages and for reading it again
	Control Control        // where the nodes come from
	Node    string         // this node's name
	Self    control.Node   // this node's entry in State; with a control plane of its own what that says of it, see With
	Own     control.Node   // what the file says of this node; with a control plane of its own alone
	Cluster []netip.Prefix // everything that is pod network; may be missing with a control plane of its own, see With
	State   control.State  // all nodes, this one included, unless a control plane has them; and the peers that are none

	Device        string
	MTU           int    // bytes, of the pods' interfaces; 0: the underlay's less PodMTUMargin
	VNI           uint32 // 24 bits
	Port          uint16 // UDP port of the VXLAN tunnels of nodes that name no other; PortOf knows
	WireGuardPort uint16 // UDP port of the encrypted tunnels of nodes that name no other; WireGuardPortOf knows
	Workers       int    // 0: one per CPU, at most 8
	Express       bool   // lanes in which little happens have a worker of their own
	Moderation    bool   // workers pause where small packets and no processors abound
	Masquerade    bool
	Offloads      Offloads
	Table         int // routing table of pod traffic
	RulePriority  int // of the first of the four policy rules
	Metrics       string
	RunDir        string // absolute
	StateDir      string // absolute
	OnExit        OnExit
	LogLevel      slog.Level
	LogFormat     string // "text" or "json"

	PersistentKeepalive time.Duration // how often something is sent to every encrypted peer; 0: when there is a reason

	PresharedKeyFile string // of nodes and peers that name no other, each of which has it in State too

	Kubernetes kubernetes.Spec // how the API server is reached; with Control Kubernetes
	Etcd       etcd.Spec       // which etcd; with Control Etcd
}

// Offloads says which offloads may be used; those that the kernel lacks are not, whatever stands here.
type Offloads struct {
	Checksum, TSO, USO, UDPGSO, UDPGRO, TunnelGSO, Superframes bool

	AnyDriver bool // TunnelGSO also with network devices whose drivers were not tried with it
}

// An offloadSwitch is one of the offloads: its key, what the file says of it, and what follows.
type offloadSwitch struct {
	key  string
	said *string
	use  *bool
}

func offloadSwitches(r *rawOffloads, o *Offloads) []offloadSwitch {
	return []offloadSwitch{
		{"checksum", &r.Checksum, &o.Checksum}, {"tso", &r.TSO, &o.TSO}, {"uso", &r.USO, &o.USO},
		{"udpGSO", &r.UDPGSO, &o.UDPGSO}, {"udpGRO", &r.UDPGRO, &o.UDPGRO},
		{"tunnelGSO", &r.TunnelGSO, &o.TunnelGSO}, {"superframes", &r.Superframes, &o.Superframes},
	}
}

// mode spells what a switch of o is set to as the file does.
func (o *Offloads) mode(s *offloadSwitch) string {
	if *s.use && s.use == &o.TunnelGSO && o.AnyDriver {
		return "on"
	}
	return switched(*s.use)
}

// Control says where a node learns of the others.
type Control string

// The control planes.
const (
	Static     Control = "static"     // the file itself
	Etcd       Control = "etcd"       // control/etcd
	Kubernetes Control = "kubernetes" // control/kubernetes
)

// OnExit says what an orderly end does with what the node made in the kernel.
type OnExit string

// What the end does.
const (
	Remove OnExit = "remove" // take everything away again
	Leave  OnExit = "leave"  // leave it for a successor: pods wait instead of losing their routes
)

// raw is the file as it is spelled.
type raw struct {
	static.Spec `yaml:",inline"`
	Node        string   `yaml:"node"`
	Control     string   `yaml:"control"`
	Addresses   []string `yaml:"addresses"`

	Kubernetes kubernetes.Spec `yaml:"kubernetes"`
	Etcd       etcd.Spec       `yaml:"etcd"`

	Device     string      `yaml:"device"`
	MTU        int         `yaml:"mtu"`
	VXLAN      rawVXLAN    `yaml:"vxlan"`
	Workers    int         `yaml:"workers"`
	Express    string      `yaml:"express"`
	Moderation string      `yaml:"moderation"`
	Masquerade bool        `yaml:"masquerade"`
	Offloads   rawOffloads `yaml:"offloads"`
	Routing    rawRouting  `yaml:"routing"`
	Metrics    string      `yaml:"metrics"`
	RunDir     string      `yaml:"runDir"`
	StateDir   string      `yaml:"stateDir"`
	OnExit     string      `yaml:"onExit"`
	Log        rawLog      `yaml:"log"`
}

type rawVXLAN struct {
	VNI  int `yaml:"vni"`
	Port int `yaml:"port"`
}

type rawOffloads struct {
	Checksum string `yaml:"checksum"`

	TSO    string `yaml:"tso"`
	USO    string `yaml:"uso"`
	UDPGSO string `yaml:"udpGSO"`
	UDPGRO string `yaml:"udpGRO"`

	TunnelGSO   string `yaml:"tunnelGSO"`
	Superframes string `yaml:"superframes"`
}

type rawRouting struct {
	Table        int `yaml:"table"`
	RulePriority int `yaml:"rulePriority"`
}

type rawLog struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

func defaults() raw {
	return raw{
		Spec:       static.Spec{WireGuard: static.WireGuardSpec{Port: 51820}},
		Control:    string(Static),
		Device:     "warren0",
		VXLAN:      rawVXLAN{VNI: 1, Port: 4789},
		Express:    "auto",
		Moderation: "auto",
		Masquerade: true,
		Offloads: rawOffloads{
			Checksum: "auto", TSO: "auto", USO: "auto", UDPGSO: "auto", UDPGRO: "auto", TunnelGSO: "auto",
			Superframes: "auto",
		},
		Routing:  rawRouting{Table: 8787, RulePriority: 5200},
		RunDir:   "/run/warren",
		StateDir: DefaultStateDir,
		OnExit:   string(Remove),
		Log:      rawLog{Level: "info", Format: "text"},
	}
}

// Default says what a node is called in the kernel and where its files are, where no configuration says otherwise.
// Nothing else is in it.
func Default() *Config {
	d := defaults()
	return &Config{Device: d.Device, RunDir: d.RunDir, StateDir: d.StateDir}
}

// Load reads and checks the file at path. A file that names no node is for the node that is called as the host is.
func Load(path string) (*Config, error) { return LoadSource(Source{File: path}) }

// LoadSource is Load with what the command line says instead of the file, in src.
func LoadSource(src Source) (*Config, error) {
	var err error
	if src.Data, err = static.ReadFile(src.File); err != nil {
		return nil, err
	}
	if src.Hostname, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("host name: %w; set `node` in %s", err, src.File)
	}
	return Parse(src)
}

// A Source is what Parse reads.
type Source struct {
	File     string // path, for messages
	Data     []byte
	Hostname string // the node's name, when the file has no `node`

	Node    string  // the node's name, whatever the file says; empty: what it says
	Control Control // where nodes come from, whatever the file says; empty: what it says
}

// Parse checks a file's content.
func Parse(src Source) (*Config, error) {
	r := defaults()
	doc, err := yamldoc.Decode(src.File, src.Data, &r)
	if err != nil {
		return nil, err
	}
	if src.Control != "" {
		r.Control = string(src.Control)
	}
	c := &checker{doc: doc, raw: &r}
	if err := c.control(); err != nil {
		return nil, err
	}
	name := cmp.Or(src.Node, r.Node, src.Hostname)
	build := r.Spec.Build
	if c.out.Control != Static {
		build = func(doc *yamldoc.Doc) (*static.Cluster, error) { return r.Spec.BuildOwn(doc, name, r.Addresses) }
	}
	cluster, err := build(doc)
	if err != nil {
		return nil, err
	}
	c.out = Config{
		File:          src.File,
		Control:       c.out.Control,
		Node:          name,
		Cluster:       cluster.CIDRs,
		State:         cluster.State,
		Device:        r.Device,
		MTU:           r.MTU,
		VNI:           uint32(r.VXLAN.VNI),
		WireGuardPort: uint16(r.WireGuard.Port),
		Workers:       r.Workers,
		Express:       r.Express == "auto",
		Moderation:    r.Moderation == "auto",
		Masquerade:    r.Masquerade,
		Table:         r.Routing.Table,
		RulePriority:  r.Routing.RulePriority,
		Metrics:       r.Metrics,
		RunDir:        r.RunDir,
		StateDir:      r.StateDir,
		OnExit:        OnExit(r.OnExit),
		LogFormat:     r.Log.Format,

		PersistentKeepalive: time.Duration(r.WireGuard.PersistentKeepalive) * time.Second,

		PresharedKeyFile: cluster.PresharedKeyFile,

		Kubernetes: r.Kubernetes,
		Etcd:       r.Etcd,
	}
	// Spelled out as a list so that the first error found is the one of the key that the others depend on.
	for _, check := range []func() error{
		c.vxlan, c.self, c.ports, c.families, c.device, c.mtu, c.workers, c.express, c.moderation, c.offloads, c.routing,
		c.metrics, c.directories, c.onExit, c.log,
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return &c.out, nil
}

// With is the configuration of a node whose control plane knows it as self, in a cluster with these ranges.
func (c *Config) With(self control.Node, cluster []netip.Prefix) (*Config, error) {
	out := *c
	self.PresharedKeyFile = c.PresharedKeyFile
	out.Self, out.Cluster = self, cluster
	if least := out.MinMTU(); out.MTU != 0 && out.MTU < least {
		return nil, &yamldoc.Error{File: c.File, Key: "mtu", Value: fmt.Sprint(out.MTU),
			Why: fmt.Sprintf("is below %d, the least for this node's pods", least), Fix: "raise it, or leave it out"}
	}
	if p := out.WireGuardPortOf(&out.Self); p == out.PortOf(&out.Self) {
		return nil, &yamldoc.Error{File: c.File, Key: "wireguard.port", Value: fmt.Sprint(p),
			Why: "is the port of this node's VXLAN tunnel too", Fix: "use another; 51820 is WireGuard's usual one"}
	}
	return &out, nil
}

// SocketIn finds the path of the API socket in a file that may otherwise be wrong: a node goes on with the last good
// configuration when its file was spoilt, and that is when one wants to ask it.
func SocketIn(path string) (string, error) {
	dirs, err := directoriesIn(path, "name the node's socket with --socket")
	return filepath.Join(dirs.RunDir, apisocket.Name), err
}

// StateDirIn finds the state directory in a file that may otherwise be wrong: a node's key is made before the file can
// name it.
func StateDirIn(path string) (string, error) {
	dirs, err := directoriesIn(path, "name the state directory with --state-dir")
	if err == nil && !filepath.IsAbs(dirs.StateDir) {
		return "", &yamldoc.Error{File: path, Key: "stateDir", Value: dirs.StateDir, Why: "is not an absolute path",
			Fix: "write it as " + DefaultStateDir}
	}
	return dirs.StateDir, err
}

// ownDirectories are the keys that are read from a file which may otherwise be wrong.
type ownDirectories struct {
	RunDir   string `yaml:"runDir"`
	StateDir string `yaml:"stateDir"`
}

func directoriesIn(path, mend string) (ownDirectories, error) {
	dirs := ownDirectories{RunDir: defaults().RunDir, StateDir: DefaultStateDir}
	data, err := static.ReadFile(path)
	if err != nil {
		return dirs, err
	}
	if err := yaml.Unmarshal(data, &dirs); err != nil {
		return dirs, fmt.Errorf("%s: %w; %s", path, err, mend)
	}
	return dirs, nil
}

// SocketPath is where the API socket is.
func (c *Config) SocketPath() string { return c.RunDir + "/" + apisocket.Name }

// MinMTU is the least MTU in bytes that this node's pods may get.
func (c *Config) MinMTU() int {
	if slices.ContainsFunc(c.Self.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return MinMTU6
	}
	return MinMTU4
}

// PortOf is the UDP port of a node's VXLAN tunnel, this one's included.
func (c *Config) PortOf(n *control.Node) uint16 { return cmp.Or(n.Port, c.Port) }

// WireGuardPortOf is the UDP port of a node's encrypted tunnel, this one's included.
func (c *Config) WireGuardPortOf(n *control.Node) uint16 {
	return cmp.Or(n.WireGuardPort, c.WireGuardPort)
}

// Encrypted reports whether the tunnel to the peer is encrypted. Both nodes of a pair come to the same answer from the
// same file, so that it can be changed node by node: one that is plaintext is so to all others.
func (c *Config) Encrypted(peer *control.Node) bool {
	return control.EncryptedBetween(&c.Self, peer)
}

// Direct says when the peer is reached without a tunnel.
func (c *Config) Direct(peer *control.Node) control.Directness {
	d := control.DirectBetween(&c.Self, peer)
	if c.Control != Static { // a node that no longer asks for it stops before the others hear of that
		d = min(d, control.DirectBetween(&c.Own, peer))
	}
	return d
}

// Encapsulation is what this node asks for. With a peer that asks for VXLAN it is that; Encrypted knows.
func (c *Config) Encapsulation() control.Encapsulation {
	return cmp.Or(c.Self.Encapsulation, control.WireGuard)
}

// Peers are the nodes of a state other than this one, and the peers that are no nodes.
func (c *Config) Peers(s control.State) []control.Node {
	return slices.DeleteFunc(slices.Clone(s.Nodes), func(n control.Node) bool { return n.Name == c.Node })
}

// Gateways are this node's gateway addresses: the first address of each pod CIDR.
func (c *Config) Gateways() []netip.Addr {
	out := make([]netip.Addr, 0, len(c.Self.PodCIDRs))
	for _, p := range c.Self.PodCIDRs {
		out = append(out, p.Addr().Next())
	}
	return out
}
