package install

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/warren-net/warren/cni"
)

// A Network is what a configuration list of Warren's says. An empty RunDir or StateDir is the plugin's default.
type Network struct {
	Name       string
	CNIVersion string
	Mode       string   // cni.ModeRouted or cni.ModeBridge
	RunDir     string   // of the daemon
	StateDir   string   // of the daemon
	Chain      []string // plugins behind Warren's: see Chainable
}

// list is the file, in the order in which people write it.
type list struct {
	CNIVersion string  `json:"cniVersion"`
	Name       string  `json:"name"`
	Plugins    []entry `json:"plugins"`
}

type entry struct {
	Type         string          `json:"type"`
	Mode         string          `json:"mode,omitempty"`
	RunDir       string          `json:"runDir,omitempty"`
	StateDir     string          `json:"stateDir,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

// pluginType is the name by which a list names Warren's plugin, and so the program's.
const pluginType = "warren-cni"

// chainable are the plugins of the containernetworking project that work behind Warren's, each with the capabilities
// without which a runtime hands them nothing to do.
func chainable() map[string]map[string]bool {
	return map[string]map[string]bool{
		"portmap":   {"portMappings": true},
		"bandwidth": {"bandwidth": true},
		"firewall":  nil,
		"tuning":    nil,
	}
}

// Chainable are the plugins that a Network can have behind Warren's.
func Chainable() []string { return slices.Sorted(maps.Keys(chainable())) }

// encode checks the network, the plugin's entry by the plugin's own rules, and writes the list.
func (n Network) encode() ([]byte, error) {
	if !slices.Contains(cni.Versions().SupportedVersions(), n.CNIVersion) {
		return nil, fmt.Errorf("CNI version %q: it must be one of %s", n.CNIVersion,
			strings.Join(cni.Versions().SupportedVersions(), ", "))
	}
	own := entry{Type: pluginType, Capabilities: map[string]bool{"ips": true, "mac": true}}
	if n.Mode != cni.ModeRouted {
		own.Mode = n.Mode
	}
	if n.RunDir != cni.DefaultRunDir {
		own.RunDir = n.RunDir
	}
	if n.StateDir != cni.DefaultStateDir {
		own.StateDir = n.StateDir
	}
	if err := n.accepted(own); err != nil {
		return nil, err
	}
	l := list{CNIVersion: n.CNIVersion, Name: n.Name, Plugins: []entry{own}}
	for i, name := range n.Chain {
		capabilities, ok := chainable()[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("chained plugin %q is not known here: it must be one of %s; others go into the list by hand",
				name, strings.Join(Chainable(), ", "))
		case slices.Contains(n.Chain[:i], name):
			return nil, fmt.Errorf("chained plugin %q is named twice: name it once", name)
		}
		l.Plugins = append(l.Plugins, entry{Type: name, Capabilities: capabilities})
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration list: %w", err)
	}
	return append(data, '\n'), nil
}

// collected reports whether runtimes send GC for the network.
func (n Network) collected() bool {
	knows, err := version.GreaterThanOrEqualTo(n.CNIVersion, "1.1.0")
	return err == nil && knows
}

// accepted hands the entry to the plugin's parser, as a runtime would.
func (n Network) accepted(e entry) error {
	conf, err := json.Marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		entry
	}{n.CNIVersion, n.Name, e})
	if err == nil {
		_, err = cni.ParseConfig(conf)
	}
	if err != nil {
		return fmt.Errorf("the plugin would refuse this configuration: %w", err)
	}
	return nil
}

// networkOf reads a list. ours: Warren's plugin is in it. edited: it says more than a Network can, or something else.
func networkOf(data []byte) (n Network, ours, edited bool) {
	var l list
	if json.Unmarshal(data, &l) != nil {
		// Not a list, or one with fields of other types: whose it is only its text tells.
		return n, strings.Contains(string(data), `"`+pluginType+`"`), true
	}
	n.Name = l.Name
	at := slices.IndexFunc(l.Plugins, func(e entry) bool { return e.Type == pluginType })
	if at < 0 {
		return n, false, true
	}
	own := l.Plugins[at]
	n = Network{Name: l.Name, CNIVersion: l.CNIVersion, Mode: cni.ModeRouted, RunDir: cni.DefaultRunDir,
		StateDir: cni.DefaultStateDir}
	for _, f := range []struct {
		is string
		to *string
	}{{own.Mode, &n.Mode}, {own.RunDir, &n.RunDir}, {own.StateDir, &n.StateDir}} {
		if f.is != "" {
			*f.to = f.is
		}
	}
	for _, e := range slices.Delete(l.Plugins, at, at+1) {
		n.Chain = append(n.Chain, e.Type)
	}
	want, err := n.encode()
	return n, true, err != nil || len(differences(data, want)) > 0
}

// differences names what two JSON files say differently, by path; nothing when both mean the same.
func differences(have, want []byte) []string {
	var a, b any
	if err := json.Unmarshal(have, &a); err != nil {
		return []string{fmt.Sprintf("it is no JSON (%v)", err)}
	}
	if err := json.Unmarshal(want, &b); err != nil {
		return []string{err.Error()}
	}
	there, here := map[string]any{}, map[string]any{}
	flatten("", a, there)
	flatten("", b, here)
	paths := maps.Clone(there)
	maps.Copy(paths, here)
	var out []string
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		x, inFile := there[path]
		y, wanted := here[path]
		switch {
		case !inFile:
			out = append(out, fmt.Sprintf("%s is not there and would be %v", path, text(y)))
		case !wanted:
			out = append(out, fmt.Sprintf("%s is %v and would not be there", path, text(x)))
		case !reflect.DeepEqual(x, y):
			out = append(out, fmt.Sprintf("%s is %v and would be %v", path, text(x), text(y)))
		}
	}
	return out
}

// flatten lists the leaves of a JSON value. An empty list or object is a leaf.
func flatten(path string, v any, into map[string]any) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			flatten(strings.TrimPrefix(path+"."+key, "."), value, into)
		}
		if len(v) > 0 {
			return
		}
	case []any:
		for i, value := range v {
			flatten(fmt.Sprintf("%s[%d]", path, i), value, into)
		}
		if len(v) > 0 {
			return
		}
	}
	into[path] = v
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
