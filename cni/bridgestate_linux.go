package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/internal/atomicfile"
)

const bridgeAlias = "warren pod bridge"

// bridgeState is what the plugin did to a bridge, so that the last pod that leaves can undo that and no more. It is
// written before it is done. A bridge that the plugin made says so itself by its alias, should the file be lost.
type bridgeState struct {
	Created    bool           `json:"created"`
	Addresses  []netip.Prefix `json:"addresses"`            // added to it
	Uplink     string         `json:"uplink,omitempty"`     // made a port of it
	UplinkDown bool           `json:"uplinkDown,omitempty"` // before that
	// Which bridge it was: in another boot, or with another index, one of the same name is the operator's, with what
	// the operator's start gave it. Empty and 0: not known.
	Boot  string `json:"boot,omitempty"`
	Index int    `json:"index,omitempty"`
}

// bootID is different after each start of the machine; "" if the kernel does not tell.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// match forgets what the file says of another bridge, and adds what this one's alias tells.
func (st *bridgeState) match(link *netlink.LinkAttrs) (added bool) {
	boot := bootID()
	if st.Boot != "" && boot != "" && st.Boot != boot || st.Index != 0 && st.Index != link.Index {
		*st = bridgeState{}
	}
	st.Boot, st.Index = boot, link.Index
	return st.adopt(link.Alias)
}

func bridgePath(stateDir, name string) string {
	return filepath.Join(stateDir, "cni", "bridges", name+".json")
}

func bridgeLockName(bridge string) string { return "bridge " + bridge }

func readBridge(stateDir, name string) (bridgeState, error) {
	var st bridgeState
	data, err := os.ReadFile(bridgePath(stateDir, name))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("%s is not what Warren writes: %w", bridgePath(stateDir, name), err)
	}
	return st, nil
}

func (a *attachment) writeBridge(st bridgeState) error {
	path := bridgePath(a.StateDir, a.Bridge)
	data, err := json.Marshal(st)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = atomicfile.Replace(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return stateFailure(a.StateDir, fmt.Errorf("recording bridge %s: %w", a.Bridge, err))
	}
	return nil
}

// unreadable reports whether a file is there and can't be used.
func unreadable(err error) bool { return err != nil && !errors.Is(err, fs.ErrNotExist) }

// alias is what a bridge that the plugin made has as its alias: with the uplink, which has to be given back.
func (st bridgeState) alias() string {
	switch {
	case st.Uplink == "":
		return bridgeAlias
	case st.UplinkDown:
		return bridgeAlias + " uplink " + st.Uplink + " down"
	}
	return bridgeAlias + " uplink " + st.Uplink
}

// adopt adds what a bridge's alias tells and the file did not, and reports whether that is anything.
func (st *bridgeState) adopt(alias string) bool {
	rest, own := strings.CutPrefix(alias, bridgeAlias)
	uplink := strings.Fields(rest) // no interface has white space in its name
	switch {
	case !own, rest != "" && (len(uplink) < 2 || uplink[0] != "uplink"):
		return false
	case st.Created && (st.Uplink != "" || rest == ""):
		return false
	}
	st.Created = true
	if st.Uplink == "" && rest != "" {
		st.Uplink, st.UplinkDown = uplink[1], len(uplink) > 2
	}
	return true
}

func (st bridgeState) origin() string {
	if st.Created {
		return "by its alias the bridge is Warren's"
	}
	return "the bridge is somebody else's, and keeps the addresses and the uplink that Warren may have given it"
}
