package cni

import (
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/types"
)

// podArgs is what a runtime says about a pod in CNI_ARGS.
type podArgs struct {
	name, namespace, uid string
	wanted               []netip.Addr // IP: the addresses that the pod is to have
	mac                  string       // MAC: the hardware address of its interface
}

// ask adds what CNI_ARGS asks for. Where both name a hardware address, runtimeConfig has the word, as in upstream's
// plugins: CNI_ARGS is deprecated. Addresses are often asked for in both, each time in another form.
func (c *Config) ask(a podArgs) {
	if c.MAC == "" {
		c.MAC = a.mac
	}
	c.want(a.wanted...)
}

func (c *Config) want(addrs ...netip.Addr) {
	for _, addr := range addrs {
		if !slices.Contains(c.Wanted, addr) {
			c.Wanted = append(c.Wanted, addr)
		}
	}
}

// checkIfName refuses names for the pod's interface that skel lets pass and that can't work. Not in DEL: with it a
// runtime ends an ADD that was refused.
func checkIfName(name string) error {
	if reason := oddName(name); reason != "" {
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME is %q: %s; choose a name like eth0", name, reason)
	}
	return nil
}

// oddName says why an interface can't have a name that is short enough and has no sign that is never taken.
func oddName(name string) string {
	switch {
	case strings.Contains(name, "%"):
		return "the kernel takes % for the place of a number, and would make another name of it"
	case name == "all" || name == "default":
		return "the settings of all interfaces have this name in /proc/sys/net"
	case !utf8.ValidString(name):
		return "it is not UTF-8"
	}
	return ""
}

// parseArgs reads CNI_ARGS: KEY=VALUE pairs with semicolons between. An unknown key is an error unless the runtime says
// IgnoreUnknown, as the conventions have it.
func parseArgs(args string) (podArgs, error) {
	var a podArgs
	var unknown []string
	ignore := false
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return a, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has %q, which is no KEY=VALUE pair: give pairs "+
				"with semicolons between", pair)
		}
		switch key {
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
				ignore = false
			default:
				return a, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has IgnoreUnknown=%s: it must be 1 or 0", value)
			}
		case "K8S_POD_NAME":
			a.name = value
		case "K8S_POD_NAMESPACE":
			a.namespace = value
		case "K8S_POD_UID":
			a.uid = value
		case "K8S_POD_INFRA_CONTAINER_ID": // the container id again
		case "IP":
			for ip := range strings.SplitSeq(value, ",") {
				addr, err := parseWanted(ip)
				if err != nil {
					return a, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has IP=%s: %w", value, err)
				}
				a.wanted = append(a.wanted, addr)
			}
		case "MAC":
			a.mac = value
		default:
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 && !ignore {
		return a, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has unknown keys %s: remove them, or add "+
			"IgnoreUnknown=1",
			strings.Join(unknown, ", "))
	}
	return a, nil
}
