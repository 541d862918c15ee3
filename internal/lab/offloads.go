package lab

import (
	"cmp"
	"fmt"
	"os"
	"strings"
)

// OffloadsEnv is the environment variable with the offloads of all nodes for which nobody asked for any by
// Settings.Offloads, as in `udpGSO=off,tunnelGSO=on`: `make test-offloads` runs what other tests prove with each
// offload on and off, and with `express=off` and `moderation=off`. The demo takes it too.
const OffloadsEnv = "WARREN_TEST_OFFLOADS"

// offloadsFrom reads the value of OffloadsEnv; what the daemon knows is not checked here, it refuses what it does not.
func offloadsFrom(value string) (map[string]string, error) {
	if value == "" {
		return nil, nil
	}
	offloads := map[string]string{}
	for part := range strings.SplitSeq(value, ",") {
		key, mode, ok := strings.Cut(part, "=")
		if !ok || key == "" || mode == "" {
			return nil, fmt.Errorf("%s is %q: it must be a list like udpGSO=off,tunnelGSO=on", OffloadsEnv, value)
		}
		offloads[key] = mode
	}
	return offloads, nil
}

// AllOffloads are the offloads that a configuration knows, each with the same mode.
func AllOffloads(mode string) map[string]string {
	all := map[string]string{}
	for _, key := range []string{"checksum", "tso", "uso", "udpGSO", "udpGRO", "tunnelGSO", "superframes"} {
		all[key] = mode
	}
	return all
}

// settings are what a node's file says: its own, where they say nothing about a switch, that of the environment, and
// where they name no encapsulation, plaintext: the daemon asks for that by name.
func (n *Node) settings() (Settings, error) {
	s := n.Settings
	s.Encapsulation = cmp.Or(s.Encapsulation, "vxlan")
	switches, err := offloadsFrom(os.Getenv(OffloadsEnv))
	if err != nil {
		return s, err
	}
	s.Express, s.Moderation = cmp.Or(s.Express, switches["express"]), cmp.Or(s.Moderation, switches["moderation"])
	delete(switches, "express")
	delete(switches, "moderation")
	if s.Offloads == nil {
		s.Offloads = switches
	}
	return s, nil
}
