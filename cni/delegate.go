package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/warren-net/warren/cni/podrecord"
)

// delegateOf is the section of a configuration that names an IPAM plugin; nil when addresses are Warren's own. It
// refuses nothing: DEL and GC must work with a section that ADD would refuse.
func delegateOf(section json.RawMessage) json.RawMessage {
	if delegateType(section) == "" {
		return nil
	}
	return section
}

func delegateType(section json.RawMessage) string {
	var ipam types.IPAM
	if json.Unmarshal(section, &ipam) != nil {
		return ""
	}
	return ipam.Type
}

// delegation is one call of an IPAM plugin.
type delegation struct {
	command string
	section json.RawMessage  // of the configuration, with the plugin's type
	pod     podrecord.Record // whose address it is about; empty for STATUS and GC
}

// delegate runs an IPAM plugin as the specification has it (section 4, "Plugin Delegation"): with the configuration and
// environment of the caller. The environment names no attachment in a GC, which detaches several, so it comes from the
// record. The result is nil but for ADD.
func (c *Config) delegate(d delegation) (*current.Result, error) {
	kind := delegateType(d.section)
	stdin, err := c.stdinWith(d.section)
	if err != nil {
		return nil, err
	}
	args := &invoke.Args{
		Command: d.command, ContainerID: d.pod.ContainerID, NetNS: d.pod.Netns, IfName: d.pod.IfName,
		PluginArgsStr: os.Getenv("CNI_ARGS"), Path: os.Getenv("CNI_PATH"),
	}
	path, err := findDelegate(d.section, d.command)
	if err != nil {
		return nil, err
	}
	if d.command != "ADD" {
		err := invoke.ExecPluginWithoutResult(context.Background(), path, stdin, args, nil)
		return nil, delegateError(kind, d.command, err)
	}
	result, err := invoke.ExecPluginWithResult(context.Background(), path, stdin, args, nil)
	if err != nil {
		return nil, delegateError(kind, d.command, err)
	}
	converted, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "the result of IPAM plugin %q: %w", kind, err)
	}
	return converted, nil
}

// findDelegate looks for an IPAM plugin where the runtime says that plugins are.
func findDelegate(section json.RawMessage, command string) (string, error) {
	kind := delegateType(section)
	path, err := invoke.FindInPath(kind, filepath.SplitList(os.Getenv("CNI_PATH")))
	switch {
	case err == nil:
		return path, nil
	case command == "DEL" || command == "CHECK":
		return "", fail(types.ErrInvalidNetworkConfig, "the pod has its addresses of IPAM plugin %q: %w: install that "+
			"plugin again", kind, err)
	}
	return "", fail(types.ErrInvalidNetworkConfig, "ipam.type is %q: %w: install that plugin, or leave ipam out for "+
		"addresses of Warren's own", kind, err)
}

// delegateError passes on what an IPAM plugin says, with its code.
func delegateError(kind, command string, err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrInternal
	if said := refusal(err); said != nil {
		code = said.Code
	}
	return fail(code, "%s of IPAM plugin %q failed: %w: it may need another section ipam, or something of its own that "+
		"does not run", command, kind, err)
}

// stdinWith is the configuration with the given section: that of the record may be older than the runtime's.
func (c *Config) stdinWith(section json.RawMessage) ([]byte, error) {
	if bytes.Equal(section, c.IPAM) {
		return c.stdin, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(c.stdin, &fields); err != nil {
		return nil, fmt.Errorf("the configuration for the IPAM plugin: %w", err)
	}
	fields["ipam"] = section
	return json.Marshal(fields)
}

// releaseDelegated gives back what IPAM plugins gave to an interface: the one that ADD called, and, where no record
// says so or the configuration has changed, the one that the configuration names. DEL of what was never added succeeds.
// Of an ADD that did not come to record an address, the first one may never have taken its section; then the other's
// word is enough.
func (p *Plugin) releaseDelegated(conf Config, rec podrecord.Record) error {
	sections := []json.RawMessage{delegateOf(rec.IPAM)}
	if !sameJSON(rec.IPAM, conf.IPAM) {
		sections = append(sections, conf.IPAM)
	}
	var errs []error
	done := false
	for _, section := range sections {
		if section == nil {
			continue
		}
		if _, err := conf.delegate(delegation{"DEL", section, rec}); err != nil {
			errs = append(errs, err)
		} else {
			done = true
		}
	}
	err := errors.Join(errs...)
	if err != nil && done && len(rec.Addresses) == 0 {
		p.remark("%v; that of the configuration as it is now succeeded", err)
		return nil
	}
	return err
}

// refusal is what an IPAM plugin said itself of what is wrong; nil when it was killed, or could not be run.
func refusal(err error) *types.Error {
	var said *types.Error
	if errors.As(err, &said) && said.Code != types.ErrUnknown {
		return said
	}
	return nil
}

// sameJSON compares but for white space, which a record is written with.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(x.Bytes(), y.Bytes())
}
