package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// Reboot leaves of the node what a power failure would: its files, but for those in RunDir. Its processes are killed,
// its namespace is replaced by a new one at the same port of the switch, and nothing runs in it. The pods of the lab
// (AddPod) on it are dead with it, though their namespaces stay until they are deleted.
func (n *Node) Reboot() error {
	err := errors.Join(n.lab.RemoveNS(n.NS), n.lab.sw.Do(func() error {
		// The kernel removes the other end some time after the namespace; this one takes it along at once.
		port, err := netlink.LinkByName(n.Port())
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(port)
	}))
	if err == nil {
		n.NS, err = n.lab.AddNS(n.Name)
	}
	if err == nil {
		err = n.connect()
	}
	if err == nil {
		err = os.RemoveAll(n.RunDir)
	}
	if err == nil {
		err = os.MkdirAll(n.RunDir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("reboot of node %s: %w", n.Name, err)
	}
	return nil
}

// connect plugs the node's namespace into the switch.
func (n *Node) connect() error {
	p := plug{port: n.Port(), bridge: bridgeName, device: underlayDevice,
		addresses: []netip.Prefix{onSubnet(n.V4), onSubnet(n.V6)}}
	gateways := []netip.Addr{routerV4, routerV6}
	if n.far {
		p.bridge, gateways = farBridgeName, []netip.Addr{farRouterV4, farRouterV6}
		p.addresses = []netip.Prefix{
			netip.PrefixFrom(n.V4, farV4.Bits()), netip.PrefixFrom(n.V6, farV6.Bits()),
		}
	}
	if err := n.lab.plug(n.NS, p); err != nil {
		return err
	}
	return n.NS.Do(func() error { return addDefaultRoutes(gateways...) })
}

// KillIn kills every process in the namespace and waits until they are gone.
func (l *Lab) KillIn(ns *NS) error {
	id, err := identify(ns.Path())
	if err != nil {
		return fmt.Errorf("namespace %s: %w", ns.Name, err)
	}
	return killIn(map[nsID]bool{id: true})
}

// OnClose has Close call f when the processes in the lab's namespaces are dead and its directory is still there. F must
// not use the lab.
func (l *Lab) OnClose(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onClose = append(l.onClose, f)
}
