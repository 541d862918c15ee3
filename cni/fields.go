package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// fieldsOf are the fields of a field that has some of its own; none where it has not, or where others add theirs.
func fieldsOf(field string) []string {
	switch field {
	case "ranges":
		return []string{"subnet", "rangeStart", "rangeEnd", "gateway"}
	case "routes":
		return []string{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}
	case "dns":
		return []string{"nameservers", "domain", "search", "options"}
	}
	return nil
}

// refuseUnknown refuses fields that are not known in the objects that a value is, or lists. What is no such value is
// refused when it is decoded.
func refuseUnknown(field string, value json.RawMessage, known []string) error {
	var list []json.RawMessage
	var object map[string]json.RawMessage
	switch {
	case known == nil:
		return nil
	case json.Unmarshal(value, &list) == nil:
		for _, element := range list {
			if err := refuseUnknown(field, element, known); err != nil {
				return err
			}
		}
		return nil
	case json.Unmarshal(value, &object) != nil:
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(known, name) {
			return fail(types.ErrUnsupportedField, "unknown field %q with value %.80s in field %s; known are %s", name,
				object[name], field, strings.Join(known, ", "))
		}
	}
	return nil
}

// notDecoded says why the value of a field can't be decoded: what in it is wrong, or else what it must be.
func notDecoded(field string, value json.RawMessage, err error) string {
	if why := wrongIn(field, value); why != "" {
		return strings.TrimPrefix(why, field+" ")
	}
	if shape := shapeOf(field); shape != "" {
		return "it must be " + shape
	}
	return err.Error()
}

// shapeOf is what the value of a field must be.
func shapeOf(field string) string {
	switch field {
	case "cniVersion", "name", "mode", "bridge", "uplink", "runDir", "stateDir":
		return "a string"
	case "hairpin":
		return "true or false"
	case "mtu":
		return "a whole number"
	case "podCIDRs":
		return `a list of address prefixes, as ["10.244.1.0/24"]`
	case "ranges":
		return `a list of lists of ranges, as [[{"subnet": "10.244.1.0/24"}]]`
	case "routes":
		return `a list of routes, as [{"dst": "10.0.0.0/8"}]`
	case "dns":
		return `an object of strings and lists of strings, as {"domain": "a.example", "nameservers": ["10.96.0.10"]}`
	case "ipam":
		return `an object that names the IPAM plugin, as {"type": "host-local"}`
	case "runtimeConfig":
		return `an object, as {"ips": ["10.244.1.9"], "mac": "02:00:00:00:00:01"}`
	case "cni.dev/valid-attachments", "cni.dev/attachments":
		return `a list of attachments, as [{"containerID": "4c1f", "ifname": "eth0"}]`
	}
	return ""
}

// wrongIn looks for a single value, within that of a field, that is not what it must be there.
func wrongIn(field string, value json.RawMessage) string {
	var list []json.RawMessage
	var object map[string]json.RawMessage
	switch {
	case json.Unmarshal(value, &list) == nil:
		for _, element := range list {
			if why := wrongIn(field, element); why != "" {
				return why
			}
		}
		return ""
	case json.Unmarshal(value, &object) == nil:
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if why := wrongIn(name, object[name]); why != "" {
				return why
			}
		}
		return ""
	}
	var text string
	if json.Unmarshal(value, &text) != nil {
		text = string(value) // a number or a truth value, which is neither prefix nor address
	}
	switch field {
	case "podCIDRs", "subnet", "dst":
		if why := wrongPrefix(text, field == "dst"); why != "" {
			return fmt.Sprintf("%s %.60s %s", field, value, why)
		}
	case "rangeStart", "rangeEnd", "gateway", "gw":
		if _, err := netip.ParseAddr(text); text != "" && err != nil {
			return fmt.Sprintf("%s %.60s is no address: write one, as \"10.244.1.9\"", field, value)
		}
	case "mtu", "advmss", "priority", "table", "scope":
		if json.Unmarshal(value, new(int)) != nil {
			return fmt.Sprintf("%s %.60s is no whole number: write digits only, without quotes", field, value)
		}
	}
	return ""
}

// wrongPrefix says why a text is no address prefix; "" when it is one, or empty. single: of one address by itself all
// bits are meant.
func wrongPrefix(text string, single bool) string {
	if _, err := netip.ParsePrefix(text); err == nil || text == "" {
		return ""
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return `is no address prefix: write one, as "10.244.1.0/24"`
	}
	bits := map[bool]int{true: 24, false: 64}[addr.Is4()]
	if single {
		bits = addr.BitLen()
	}
	return fmt.Sprintf("has no prefix length: write %q, or another length", netip.PrefixFrom(addr, bits).Masked())
}
