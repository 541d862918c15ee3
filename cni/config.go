package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/warren-net/warren/cni/podrecord"
)

// Modes of attachment.
const (
	ModeRouted = "routed"
	ModeBridge = "bridge"
)

// Defaults of the configuration.
const (
	DefaultBridge   = "warren-br0"
	DefaultRunDir   = "/run/warren"
	DefaultStateDir = "/var/lib/warren"
	DefaultMTU      = 1500 - 80 // where neither the configuration nor the daemon says
)

const maxNetworkName = 255 // bytes (NAME_MAX): a directory has the network's name

// Config is the plugin's entry in a network configuration list, as it was written.
type Config struct {
	CNIVersion string
	Name       string          // of the network
	Mode       string          // ModeRouted or ModeBridge
	Bridge     string          // bridge mode: the bridge
	Uplink     string          // bridge mode: the interface that joins it with the bridges of other nodes
	Hairpin    bool            // bridge mode: a port sends packets back to where they came from
	MTU        int             // bytes, of the pods' interfaces; 0: the daemon's
	PodCIDRs   []netip.Prefix  // empty: the daemon's
	Ranges     [][]Range       // a pod gets an address of each set; empty: PodCIDRs, one address per family
	Routes     []types.Route   // in the pod; nil: a default route per family
	RunDir     string          // of the daemon, where it tells about the node
	StateDir   string          // of the daemon, where addresses and pod records are
	DNS        types.DNS       // passed on in the result
	IPAM       json.RawMessage // section ipam, when it names a plugin; nil: addresses are Warren's own

	Wanted           []netip.Addr         // runtimeConfig.ips
	MAC              string               // runtimeConfig.mac
	PrevResult       []byte               // as it was given; nil: none
	ValidAttachments []types.GCAttachment // what GC keeps
	HasAttachments   bool                 // the runtime gave a list, if only an empty one
	stdin            []byte               // all of it, for the IPAM plugin
}

// Range is a part of a pod CIDR from which addresses are given.
type Range struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart"` // zero: the subnet's first address
	RangeEnd   netip.Addr   `json:"rangeEnd"`   // zero: the subnet's last address that can be given
	Gateway    netip.Addr   `json:"gateway"`    // zero: the pod CIDR's
}

// hints say where the setting is that somebody who knows other plugins looks for.
func hints(field string) string {
	switch field {
	case "ipMasq", "ipMasqBackend":
		return "; whether traffic that leaves the cluster is masqueraded is the node's setting: `masquerade` in warren.yaml"
	case "hairpinMode":
		return "; it is called hairpin here"
	case "isGateway", "isDefaultGateway", "forceAddress", "promiscMode", "vlan", "preserveDefaultVlan":
		return "; leave it out, Warren's bridge always holds the gateway address and knows no VLANs"
	case "subnet", "rangeStart", "rangeEnd":
		return "; put it into ranges: [[{\"subnet\": …}]]"
	case "plugins":
		return "; this is a list: a runtime hands each of its plugins over by itself (to try by hand, use cnitool)"
	case "dataDir":
		return "; addresses are kept in stateDir"
	}
	return ""
}

// ParseConfig reads the configuration that the runtime passes on standard input. Every field that is not known is an
// error, but for those that the CNI specification and its conventions define.
func ParseConfig(stdin []byte) (Config, error) {
	c, fields, err := parseCommon(stdin)
	if err != nil {
		return c, err
	}
	c.Mode, c.Hairpin = ModeRouted, true
	var ipam types.IPAM
	var runtime struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	}
	known := map[string]any{
		"cniVersion": nil, "name": nil, "type": nil, "stateDir": nil, "runDir": nil,
		"cniVersions": nil, "args": nil, "capabilities": nil, "disableCheck": nil, "disableGC": nil, "prevResult": nil,
		"cni.dev/valid-attachments": nil, "cni.dev/attachments": nil,
		"mode": &c.Mode, "bridge": &c.Bridge, "uplink": &c.Uplink, "hairpin": &c.Hairpin, "mtu": &c.MTU,
		"podCIDRs": &c.PodCIDRs, "ranges": &c.Ranges, "routes": &c.Routes,
		"dns": &c.DNS, "ipam": &ipam, "runtimeConfig": &runtime,
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		target, ok := known[field]
		if !ok {
			return c, fail(types.ErrUnsupportedField, "unknown field %q with value %.80s in the configuration of network "+
				"%q%s; known are %s", field, fields[field], c.Name, hints(field), strings.Join(ownFields(), ", "))
		}
		if target == nil {
			continue
		}
		if err := refuseUnknown(field, fields[field], fieldsOf(field)); err != nil {
			return c, fmt.Errorf("network %q: %w", c.Name, err)
		}
		if err := decode(field, fields[field], target); err != nil {
			return c, err
		}
	}
	if c.Mode == ModeBridge && c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	c.MAC = runtime.MAC
	for _, ip := range runtime.IPs {
		addr, err := parseWanted(ip)
		if err != nil {
			return c, fail(types.ErrInvalidNetworkConfig, "runtimeConfig.ips: %w", err)
		}
		c.want(addr)
	}
	if c.IPAM == nil {
		if err := refuseUntyped(fields["ipam"]); err != nil {
			return c, err
		}
	}
	return c, c.validate()
}

// refuseUntyped refuses a section ipam that names no plugin but says something, which nobody would heed.
func refuseUntyped(section json.RawMessage) error {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(section, &fields) // what is no object was refused before
	delete(fields, "type")
	if len(fields) == 0 {
		return nil
	}
	return fail(types.ErrInvalidNetworkConfig, "ipam has %s, but no type, so it is nobody's: put ranges beside it, "+
		"into field ranges, for addresses of Warren's own, or name the IPAM plugin in ipam.type",
		strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
}

func ownFields() []string {
	return []string{
		"mode", "bridge", "uplink", "hairpin", "mtu", "podCIDRs", "ranges", "ipam", "routes", "dns", "runDir", "stateDir",
	}
}

// parseCommon reads what every command needs, and no more: DEL and GC must work with a configuration that ADD would
// refuse, or nobody could get rid of a pod after an edit.
func parseCommon(stdin []byte) (Config, map[string]json.RawMessage, error) {
	c := Config{RunDir: DefaultRunDir, StateDir: DefaultStateDir, stdin: stdin}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &fields); err != nil {
		return c, nil, fail(types.ErrDecodingFailure, "the network configuration on standard input is no JSON object: %w",
			err)
	}
	var attachments, older []types.GCAttachment
	for _, f := range []struct {
		name   string
		target any
	}{
		{"cniVersion", &c.CNIVersion}, {"name", &c.Name}, {"runDir", &c.RunDir}, {"stateDir", &c.StateDir},
		{"cni.dev/valid-attachments", &attachments}, {"cni.dev/attachments", &older},
	} {
		raw, ok := fields[f.name]
		if !ok {
			continue
		}
		if err := decode(f.name, raw, f.target); err != nil {
			return c, nil, err
		}
	}
	c.IPAM = delegateOf(fields["ipam"])
	if raw, ok := fields["prevResult"]; ok && string(raw) != "null" {
		c.PrevResult = raw
	}
	// The specification's text says "cni.dev/attachments", libcni sends "cni.dev/valid-attachments".
	_, hasNew := fields["cni.dev/valid-attachments"]
	_, hasOld := fields["cni.dev/attachments"]
	c.HasAttachments, c.ValidAttachments = hasNew || hasOld, append(attachments, older...)
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return c, nil, fail(types.ErrInvalidNetworkConfig, "name: %w", err)
	}
	for field, dir := range map[string]string{"runDir": c.RunDir, "stateDir": c.StateDir} {
		if !filepath.IsAbs(dir) {
			return c, nil, fail(types.ErrInvalidNetworkConfig, "%s is %q: it must be an absolute path, as the plugin runs in "+
				"whatever directory the runtime has", field, dir)
		}
	}
	return c, fields, nil
}

func decode(field string, raw json.RawMessage, target any) error {
	if err := json.Unmarshal(raw, target); err != nil {
		return fail(types.ErrInvalidNetworkConfig, "field %q is %.80s: %s", field, raw, notDecoded(field, raw, err))
	}
	return nil
}

func parseWanted(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		prefix, prefixErr := netip.ParsePrefix(s) // both forms are in use
		if prefixErr != nil {
			return addr, fmt.Errorf("%q is neither an address nor an address with a prefix length", s)
		}
		addr = prefix.Addr()
	}
	return addr.Unmap(), nil
}

// validate checks what can be said without the node's own facts.
func (c *Config) validate() error {
	bad := func(format string, args ...any) error { return fail(types.ErrInvalidNetworkConfig, format, args...) }
	switch {
	case len(c.Name) > maxNetworkName:
		return bad("name has %d bytes: it must have at most %d, as a directory is called so", len(c.Name), maxNetworkName)
	case c.Mode != ModeRouted && c.Mode != ModeBridge:
		return bad("mode is %q: it must be %q or %q", c.Mode, ModeRouted, ModeBridge)
	case c.Mode == ModeRouted && c.Bridge != "":
		return bad("bridge is %q, but mode is %q: set mode to %q, or remove bridge", c.Bridge, c.Mode, ModeBridge)
	case c.Mode == ModeRouted && c.Uplink != "":
		return bad("uplink is %q, but mode is %q: set mode to %q, or remove uplink", c.Uplink, c.Mode, ModeBridge)
	case c.Mode == ModeRouted && !c.Hairpin:
		return bad("hairpin is false, but mode is %q, in which a pod always reaches itself through a service: set mode "+
			"to %q, or remove hairpin", c.Mode, ModeBridge)
	case c.Uplink != "" && c.Uplink == c.Bridge:
		return bad("uplink and bridge are both %q: the uplink becomes a port of the bridge, so it must be another interface",
			c.Uplink)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535):
		return bad("mtu is %d: it must be between 576 (1280 with IPv6) and 65535, or 0 for the node's", c.MTU)
	case len(c.PodCIDRs) > 0 && len(c.Ranges) > 0:
		return bad("both podCIDRs and ranges are set: keep one; ranges name their subnets themselves")
	case c.IPAM != nil && (len(c.PodCIDRs) > 0 || len(c.Ranges) > 0):
		return bad("ipam.type is %q, and podCIDRs or ranges are set, which are for addresses of Warren's own: remove ipam, "+
			"or put the ranges into it, as its plugin wants them", delegateType(c.IPAM))
	case c.Mode == ModeRouted && podrecord.UsesDHCP(c.IPAM):
		return bad("ipam.type is \"dhcp\", but mode is %q, in which no DHCP server is on the pod's link: set mode to %q, or "+
			"remove ipam", c.Mode, ModeBridge)
	}
	if c.Bridge != "" {
		if err := utils.ValidateInterfaceName(c.Bridge); err != nil {
			return bad("bridge is %q: %w", c.Bridge, err)
		}
		if reason := oddName(c.Bridge); reason != "" {
			return bad("bridge is %q: %s; choose a name like %s", c.Bridge, reason, DefaultBridge)
		}
	}
	if c.Uplink != "" {
		if err := utils.ValidateInterfaceName(c.Uplink); err != nil {
			return bad("uplink is %q: %w", c.Uplink, err)
		}
	}
	for i, cidr := range c.PodCIDRs {
		if !cidr.IsValid() {
			return bad("podCIDRs: entry %d is empty: remove it, or write an address prefix, as 10.244.1.0/24", i+1)
		}
		if cidr != cidr.Masked() {
			return bad("podCIDRs: %s has bits set after its prefix: write %s", cidr, cidr.Masked())
		}
		for _, other := range c.PodCIDRs[:i] {
			if other.Overlaps(cidr) {
				return bad("podCIDRs: %s and %s overlap", other, cidr)
			}
		}
	}
	return nil
}
