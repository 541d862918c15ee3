package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/internal/key"
)

// Settings are the optional keys of a node's configuration file; a zero value leaves the key out.
type Settings struct {
	MTU           int               `yaml:"mtu,omitempty"` // bytes, of the pods' interfaces
	Encapsulation string            `yaml:"encapsulation,omitempty"`
	Workers       int               `yaml:"workers,omitempty"`
	Express       string            `yaml:"express,omitempty"`    // auto or off; empty: see OffloadsEnv
	Moderation    string            `yaml:"moderation,omitempty"` // the same
	Masquerade    *bool             `yaml:"masquerade,omitempty"`
	Offloads      map[string]string `yaml:"offloads,omitempty"` // by key: auto or off; nil: see OffloadsEnv
	Metrics       string            `yaml:"metrics,omitempty"`
	OnExit        string            `yaml:"onExit,omitempty"` // remove or leave
	Log           map[string]string `yaml:"log,omitempty"`
}

// empty reports whether nothing is set.
func (s *Settings) empty() bool { return reflect.DeepEqual(*s, Settings{}) }

// configFile is the form of warren.yaml, written here from its documentation and not from the daemon's own types: what
// a user would write has to work.
type configFile struct {
	Node     string         `yaml:"node"`
	Cluster  []netip.Prefix `yaml:"cluster"`
	Nodes    []configNode   `yaml:"nodes"`
	RunDir   string         `yaml:"runDir"`
	StateDir string         `yaml:"stateDir"`
	Settings `yaml:",inline"`
}

type configNode struct {
	Name          string         `yaml:"name"`
	Addresses     []netip.Addr   `yaml:"addresses,flow"`
	PodCIDRs      []netip.Prefix `yaml:"podCIDRs,flow"`
	PublicKey     key.Public     `yaml:"publicKey,omitempty"`
	Encapsulation string         `yaml:"encapsulation,omitempty"`
}

// WriteConfigs writes the configuration file of every node, each listing all nodes of the lab, or what Init and Join
// wrote. A file is replaced whole, so that a running daemon never reads a part of it.
func (l *Lab) WriteConfigs() error {
	nodes := l.Nodes()
	list := make([]configNode, len(nodes))
	for i, n := range nodes {
		list[i] = configNode{Name: n.Name, Addresses: []netip.Addr{n.V4, n.V6}, PodCIDRs: n.PodCIDRs,
			PublicKey: n.PublicKey, Encapsulation: n.Encapsulation}
	}
	var errs []error
	for _, n := range nodes {
		if n.entered != nil {
			errs = append(errs, n.writeEntered())
		} else {
			errs = append(errs, n.writeConfig(list))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) writeConfig(list []configNode) error {
	settings, err := n.settings()
	if err != nil {
		return fmt.Errorf("configuration of node %s: %w", n.Name, err)
	}
	content, err := yaml.Marshal(configFile{
		Node:     n.Name,
		Cluster:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Nodes:    list,
		RunDir:   n.RunDir,
		StateDir: n.StateDir,
		Settings: settings,
	})
	if err != nil {
		return fmt.Errorf("configuration of node %s: %w", n.Name, err)
	}
	return replaceFile(n.ConfigFile, content)
}
