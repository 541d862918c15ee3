package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/ipam"
	"golang.org/x/sys/unix"
)

// status says whether the node can take pods now, and carry their traffic.
func (p *Plugin) status(args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData)
	if err != nil {
		return err
	}
	n, err := conf.resolve()
	if err != nil {
		return fail(types.ErrPluginNotAvailable, "%w", err)
	}
	if err := trustState(n.StateDir); err != nil {
		return fail(types.ErrPluginNotAvailable, "%w", err)
	}
	if err := n.writable(); err != nil {
		return fail(types.ErrPluginNotAvailable, "no pod can be added: %w", err)
	}
	if n.IPAM != nil {
		if _, err := n.delegate(delegation{command: "STATUS", section: n.IPAM}); err != nil {
			return err
		}
	}
	if err := n.room(); err != nil {
		return err
	}
	if n.device == "" {
		return fail(types.ErrLimitedConnectivity, "pods can be added, but reach no other node: the daemon has not run "+
			"yet; start "+
			"`warren up`")
	}
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	link, err := host.LinkByName(n.device)
	switch {
	case isNotFound(err):
		return fail(types.ErrLimitedConnectivity, "device %s does not exist, so pods reach no other node: start `warren up`",
			n.device)
	case err != nil:
		return fmt.Errorf("looking at %s: %w", n.device, err)
	case link.Attrs().Flags&net.FlagUp == 0:
		return fail(types.ErrLimitedConnectivity, "device %s is down, so pods reach no other node: restart `warren up`",
			n.device)
	case link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0:
		// A TUN has a carrier as long as a process holds one of its queues.
		return fail(types.ErrLimitedConnectivity, "nobody serves device %s, so pods reach no other node: start `warren up`",
			n.device)
	}
	return daemonAnswers(n.RunDir)
}

// room reports a network that has no address left, its own pods or those of other networks having them.
func (n *network) room() error {
	store, err := addressStore(n.StateDir, n.Name)
	if err != nil {
		return err
	}
	entries, err := store.InUse()
	if err != nil {
		return err
	}
	for i := range n.sets {
		var full *ipam.FullError
		if err := ipam.Full(n.sets[i], entries); errors.As(err, &full) {
			return fail(types.ErrPluginNotAvailable, "%w: %s", full, n.moreRoom(full))
		}
	}
	return nil
}
