package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/node/config"
)

// A written is the configuration that `warren init` and `warren join` write. What it leaves out has the defaults.
type written struct {
	Node          string     `yaml:"node"`
	Addresses     []string   `yaml:"addresses,flow"`
	Control       string     `yaml:"control"`
	Etcd          writtenKey `yaml:"etcd"`
	Encapsulation string     `yaml:"encapsulation,omitempty"`
	VXLAN         writtenVXL `yaml:"vxlan"`
	WireGuard     writtenWG  `yaml:"wireguard"`
	RunDir        string     `yaml:"runDir,omitempty"`
	StateDir      string     `yaml:"stateDir,omitempty"`
}

type writtenVXL struct {
	VNI  uint32 `yaml:"vni"`
	Port uint16 `yaml:"port"`
}

type writtenWG struct {
	Port uint16 `yaml:"port"`
}

// A writtenKey is an etcd.Spec as it is written: without what it does not say.
type writtenKey struct {
	Endpoints     []string `yaml:"endpoints,flow"`
	Network       string   `yaml:"network"`
	CA            string   `yaml:"ca,omitempty"`
	Certificate   string   `yaml:"certificate,omitempty"`
	Key           string   `yaml:"key,omitempty"`
	Embedded      bool     `yaml:"embedded,omitempty"`
	ListenClients string   `yaml:"listenClients,omitempty"`
	ListenPeers   string   `yaml:"listenPeers,omitempty"`
	ListenJoin    string   `yaml:"listenJoin,omitempty"`
}

func keyOf(s *etcd.Spec) writtenKey {
	return writtenKey{Endpoints: s.Endpoints, Network: s.Network, CA: s.CA, Certificate: s.Certificate, Key: s.Key,
		Embedded: s.Embedded, ListenClients: s.ListenClients, ListenPeers: s.ListenPeers, ListenJoin: s.ListenJoin}
}

// mayWrite refuses to write over the configuration of something else than this node in this network.
func (h *hostFlags) mayWrite() error {
	if _, err := os.Stat(h.config); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	cfg, err := config.Load(h.config)
	if err != nil {
		return fmt.Errorf("%w; this file would be written over: mend it, move it away, or name another with --config", err)
	}
	other := ""
	switch {
	case cfg.Control != config.Etcd:
		other = "a node whose control plane is " + string(cfg.Control)
	case cfg.Node != h.node:
		other = fmt.Sprintf("node %q", cfg.Node)
	case h.network != "" && cfg.Etcd.Network != h.network:
		other = fmt.Sprintf("network %q", cfg.Etcd.Network)
	case cfg.StateDir != h.stateDir:
		other = "a node with the state directory " + cfg.StateDir
	}
	if other == "" {
		return nil
	}
	if cfg.Control == config.Etcd {
		return fmt.Errorf("%s is the configuration of %s, and is not written over: `warren leave` takes this host out of "+
			"that network; or name another file with --config", h.config, other)
	}
	return fmt.Errorf("%s is the configuration of %s, and is not written over: move it away, or name another with "+
		"--config", h.config, other)
}

// writeConfig writes the configuration and reads it again.
func (h *hostFlags) writeConfig(spec *etcd.Spec, s *etcd.Settings) error {
	w := written{Node: h.node, Addresses: h.addresses, Control: string(config.Etcd), Etcd: keyOf(spec),
		Encapsulation: string(s.Encapsulation), VXLAN: writtenVXL{s.VNI, s.Port}, WireGuard: writtenWG{s.WireGuardPort}}
	if h.stateDir != config.DefaultStateDir {
		w.StateDir = h.stateDir
	}
	if h.runDir != defaultRunDir {
		w.RunDir = h.runDir
	}
	var b bytes.Buffer
	b.WriteString("# Written by Warren. Other keys may be added, see docs/configuration.md.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(w), enc.Close()); err != nil {
		return err
	}
	// As a whole it has to be one that `warren up` takes, before anything is replaced.
	if _, err := config.Parse(config.Source{File: h.config, Data: b.Bytes(), Hostname: h.node}); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(h.config), 0o755); err != nil {
		return err
	}
	if old, err := os.ReadFile(h.config); err == nil && !bytes.Equal(old, b.Bytes()) {
		if err := atomicfile.Replace(h.config+".old", old, 0o644); err != nil {
			return err
		}
	}
	if err := atomicfile.Replace(h.config, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// rewriteEtcd replaces the key `etcd` of a configuration and leaves everything else, comments too.
func rewriteEtcd(path string, spec *etcd.Spec) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil || len(root.Content) == 0 {
		return fmt.Errorf("%s: cannot be edited: %w", path, err)
	}
	var value yaml.Node
	if err := value.Encode(keyOf(spec)); err != nil {
		return err
	}
	top := root.Content[0]
	found := false
	for i := 0; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == "etcd" {
			top.Content[i+1], found = &value, true
		}
	}
	if !found {
		return fmt.Errorf("%s has no key `etcd`", path)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&root), enc.Close()); err != nil {
		return err
	}
	return atomicfile.Replace(path, b.Bytes(), 0o644)
}
