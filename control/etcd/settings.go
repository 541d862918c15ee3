package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
)

// Settings are what holds for a whole network. They are written once, by `warren init`, and read by all nodes.
type Settings struct {
	Ranges []netip.Prefix // all that is pod network; masked

	// NodePrefix4 and NodePrefix6 are the lengths of each node's pod CIDRs; 0: no range of that family is there.
	NodePrefix4, NodePrefix6 int

	Encapsulation control.Encapsulation // of nodes that say nothing else; empty: WireGuard
	VNI           uint32                // of VXLAN
	Port          uint16                // UDP port of the VXLAN tunnels
	WireGuardPort uint16                // UDP port of the encrypted tunnels
}

// What a network gets where `warren init` is told nothing.
const (
	DefaultNodePrefix4 = 24
	DefaultNodePrefix6 = 64

	defaultVNI           = 1
	defaultPort          = 4789
	defaultWireGuardPort = 51820
)

// Errors on which callers decide.
var (
	ErrNoNetwork     = errors.New("there is no such network")
	ErrOtherSettings = errors.New("the network exists already, with other settings")
)

type settingsRecord struct {
	Version       int            `json:"version"`
	Ranges        []netip.Prefix `json:"ranges"`
	NodePrefix4   int            `json:"nodePrefix4,omitempty"`
	NodePrefix6   int            `json:"nodePrefix6,omitempty"`
	Encapsulation string         `json:"encapsulation,omitempty"`
	VNI           uint32         `json:"vni"`
	Port          uint16         `json:"port"`
	WireGuardPort uint16         `json:"wireGuardPort"`
}

// hostBits is the least that a pod CIDR needs: its own address, the gateway, a pod, and IPv4's broadcast address.
const hostBits = 2

// maxBits bounds how many pod CIDRs a range holds, so that they can be counted.
const maxBits = 62

// Complete fills in what s leaves open, and checks it.
func (s Settings) Complete() (Settings, error) {
	if len(s.Ranges) == 0 {
		return s, errors.New("no range for pods: give one, for example 10.244.0.0/16")
	}
	if s.VNI == 0 {
		s.VNI = defaultVNI
	}
	if s.Port == 0 {
		s.Port = defaultPort
	}
	if s.WireGuardPort == 0 {
		s.WireGuardPort = defaultWireGuardPort
	}
	if s.Port == s.WireGuardPort {
		return s, fmt.Errorf("UDP port %d for both tunnels: give them two", s.Port)
	}
	has4, has6 := false, false
	for i, p := range s.Ranges {
		if !p.IsValid() || p.Addr().Is4In6() || p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback() ||
			p.Addr().IsLinkLocalUnicast() {
			return s, fmt.Errorf("range %s is not one that pods can have: use a private one such as 10.244.0.0/16", p)
		}
		if p != p.Masked() {
			return s, fmt.Errorf("range %s has host bits set after the prefix length: write %s", p, p.Masked())
		}
		for _, o := range s.Ranges[:i] {
			if o.Overlaps(p) {
				return s, fmt.Errorf("ranges %s and %s overlap: keep the wider one", o, p)
			}
		}
		has4, has6 = has4 || p.Addr().Is4(), has6 || p.Addr().Is6()
	}
	for _, f := range []struct {
		has    bool
		length *int
		usual  int
		is4    bool
	}{{has4, &s.NodePrefix4, DefaultNodePrefix4, true}, {has6, &s.NodePrefix6, DefaultNodePrefix6, false}} {
		if !f.has {
			*f.length = 0
			continue
		}
		if *f.length == 0 {
			*f.length = f.usual
		}
		for _, p := range s.Ranges {
			if p.Addr().Is4() == f.is4 {
				if err := fits(p, *f.length); err != nil {
					return s, err
				}
			}
		}
	}
	if s.Encapsulation != "" && !s.Encapsulation.Known() {
		// Another version may know it; it is not this package's to judge what a node can do.
		if err := CheckName("encapsulation", string(s.Encapsulation)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// fits checks that CIDRs of so many bits can be taken from the range.
func fits(p netip.Prefix, length int) error {
	switch {
	case length < p.Bits():
		return fmt.Errorf("range %s holds no pod CIDR of /%d: use a wider range or longer prefixes for the nodes", p, length)
	case length > p.Addr().BitLen()-hostBits:
		return fmt.Errorf("pod CIDRs of /%d hold no pod beside the gateway: use /%d or wider", length,
			p.Addr().BitLen()-hostBits)
	case length-p.Bits() > maxBits:
		return fmt.Errorf("range %s with pod CIDRs of /%d is more than can be counted: use prefixes of /%d for the nodes", p,
			length, p.Bits()+16)
	}
	return nil
}

// nodePrefix is the length of a node's pod CIDR in the range's family.
func (s *Settings) nodePrefix(in netip.Prefix) int {
	if in.Addr().Is4() {
		return s.NodePrefix4
	}
	return s.NodePrefix6
}

// admits reports whether p is a pod CIDR that this network can give to a node.
func (s *Settings) admits(p netip.Prefix) bool {
	return p == p.Masked() && slices.ContainsFunc(s.Ranges, func(r netip.Prefix) bool {
		return r.Overlaps(p) && r.Bits() <= p.Bits() && s.nodePrefix(r) == p.Bits()
	})
}

func (s *Settings) equal(o *Settings) bool {
	return slices.Equal(s.Ranges, o.Ranges) && s.NodePrefix4 == o.NodePrefix4 && s.NodePrefix6 == o.NodePrefix6 &&
		s.Encapsulation == o.Encapsulation && s.VNI == o.VNI && s.Port == o.Port && s.WireGuardPort == o.WireGuardPort
}

// WriteSettings makes the network. Where it exists already with the same settings that is no error; with others it is
// ErrOtherSettings, and they stay as they are.
func (c *Client) WriteSettings(ctx context.Context, s Settings) error {
	s, err := s.Complete()
	if err != nil {
		return err
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	at := c.keys.settings()
	value := marshal(settingsRecord{Version: recordVersion, Ranges: s.Ranges, NodePrefix4: s.NodePrefix4,
		NodePrefix6: s.NodePrefix6, Encapsulation: string(s.Encapsulation), VNI: s.VNI, Port: s.Port,
		WireGuardPort: s.WireGuardPort})
	resp, err := c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(at), "=", 0)).
		Then(clientv3.OpPut(at, value)).Else(clientv3.OpGet(at)).Commit()
	if err != nil {
		return c.Explain(err)
	}
	if resp.Succeeded {
		return nil
	}
	there, err := decodeSettings(c.cfg.Network, resp.Responses[0].GetResponseRange().Kvs[0].Value)
	if err != nil {
		return err
	}
	if !there.equal(&s) {
		return fmt.Errorf("network %q: %w: ranges %v, pod CIDRs of /%d and /%d, encapsulation %q, VNI %d, UDP ports %d and "+
			"%d; choose another name for this network, or join that one", c.cfg.Network, ErrOtherSettings, there.Ranges,
			there.NodePrefix4, there.NodePrefix6, there.Encapsulation, there.VNI, there.Port, there.WireGuardPort)
	}
	return nil
}

// Settings reads what holds for the network.
func (c *Client) Settings(ctx context.Context) (Settings, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.etcd.Get(ctx, c.keys.settings())
	if err != nil {
		return Settings{}, c.Explain(err)
	}
	return c.settingsIn(resp.Kvs)
}

func (c *Client) settingsIn(kvs []*mvccpb.KeyValue) (Settings, error) {
	if len(kvs) == 0 {
		return Settings{}, fmt.Errorf("network %q: %w in this etcd: `warren init` makes it, or name another one with "+
			"`etcd.network`", c.cfg.Network, ErrNoNetwork)
	}
	return decodeSettings(c.cfg.Network, kvs[0].Value)
}

func decodeSettings(network string, data []byte) (Settings, error) {
	var r settingsRecord
	if err := unmarshal(data, &r, &r.Version); err != nil {
		return Settings{}, fmt.Errorf("settings of network %q: %w", network, err)
	}
	s, err := Settings{Ranges: r.Ranges, NodePrefix4: r.NodePrefix4, NodePrefix6: r.NodePrefix6,
		Encapsulation: control.Encapsulation(r.Encapsulation), VNI: r.VNI, Port: r.Port,
		WireGuardPort: r.WireGuardPort}.Complete()
	if err != nil {
		return Settings{}, fmt.Errorf("settings of network %q in etcd: %w", network, err)
	}
	return s, nil
}
