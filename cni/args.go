package cni

import (
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// podArgs is what a runtime says about a pod in CNI_ARGS.
type podArgs struct {
	name, namespace, uid string
	wanted               []netip.Addr // IP: the addresses that the pod is to have
	mac                  string       // MAC: the hardware address of its interface
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
			return a, fail(types.ErrInvalidEnvironmentVariables, "CNI_ARGS has %q, which is no KEY=VALUE pair", pair)
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
