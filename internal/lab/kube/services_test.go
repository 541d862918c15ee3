//go:build cluster

package kube_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/kube"
)

// servicePort is the port of every service, TCP and UDP.
const servicePort = 80

// A service that the API server knows.
type service struct {
	name      string
	addresses []netip.Addr // IPv4, IPv6
	nodePort  int          // TCP and UDP; 0: none
}

func (s *service) address(family int) netip.Addr { return s.addresses[family/6] }

// serviceOptions are optional.
type serviceOptions struct {
	nodePort int
	local    bool // externalTrafficPolicy: Local
}

// expose makes a service, with an address of each family, of the pods of a workload.
func (c *cluster) expose(name, app string, o serviceOptions) *service {
	c.t.Helper()
	type object map[string]any
	var ports []object
	for _, protocol := range []string{"TCP", "UDP"} {
		p := object{"name": strings.ToLower(protocol), "port": servicePort, "targetPort": port, "protocol": protocol}
		if o.nodePort != 0 {
			p["nodePort"] = o.nodePort
		}
		ports = append(ports, p)
	}
	spec := object{"selector": object{"app": app}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"}
	if o.nodePort != 0 {
		spec["type"] = "NodePort"
	}
	if o.local {
		spec["externalTrafficPolicy"] = "Local"
	}
	manifest, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name}, "spec": spec,
	})
	c.ok(err)
	c.ok(c.Apply(c.ctx, string(manifest)))
	var got struct {
		Spec struct{ ClusterIPs []netip.Addr }
	}
	c.ok(c.Get(c.ctx, &got, "service", name))
	s := &service{name: name, addresses: got.Spec.ClusterIPs, nodePort: o.nodePort}
	if len(s.addresses) != 2 {
		c.t.Fatalf("service %s has %v, want an address of each family", name, s.addresses)
	}
	slices.SortFunc(s.addresses, netip.Addr.Compare)
	return s
}

// known waits until the service answers on every node by both protocols and families: kube-proxy has heard of it then.
func (c *cluster) known(s *service) {
	c.t.Helper()
	for _, n := range c.Nodes {
		c.everyWay(func(family int, by string) {
			c.until("service "+s.name+" on node "+n.Name, func() error {
				_, err := c.askFrom(n.NS, by, netip.AddrPortFrom(s.address(family), servicePort))
				return err
			})
		})
	}
}

// everyWay tries both families and protocols.
func (c *cluster) everyWay(try func(family int, by string)) {
	for _, family := range []int{4, 6} {
		for _, by := range []string{"tcp", "udp"} {
			try(family, by)
		}
	}
}

// services: what kube-proxy does for pods, nodes and the outside, with one pod behind the service.
func services(c *cluster) {
	pods := c.run(workload{name: "backend", replicas: 1, node: c.Nodes[0].Name},
		workload{name: "client", replicas: len(c.Nodes)})
	backend, clients := pods[0], pods[1:]
	s := c.expose("backend", "backend", serviceOptions{nodePort: 30080})
	local := c.expose("local", "backend", serviceOptions{nodePort: 30081, local: true})
	c.known(s)
	c.known(local)
	for _, client := range clients {
		c.everyWay(func(family int, by string) {
			c.wantSource(client, by, netip.AddrPortFrom(s.address(family), servicePort), client.address(family))
			for _, n := range c.Nodes {
				// From a pod to a port of a node. The source may be a node's: kube-proxy translates it to lead the answer back.
				c.wantSource(client, by, netip.AddrPortFrom(n.Address(family), uint16(s.nodePort)))
			}
		})
	}
	c.everyWay(func(family int, by string) {
		// The pod itself: kube-proxy translates the source, which may be any address of the node's then.
		c.wantSource(backend, by, netip.AddrPortFrom(s.address(family), servicePort))
		c.wantSource(backend, by, netip.AddrPortFrom(backend.node.Address(family), uint16(s.nodePort)))
	})
	c.fromOutside(backend, s, local)
	c.hostsAsk(s)
	c.remove(pods, "backend", "client", "local")
	c.everyWay(func(family int, by string) {
		to := netip.AddrPortFrom(c.Nodes[1].Address(family), uint16(s.nodePort))
		c.until("the end of the service", func() error {
			if _, err := c.askFrom(c.Lab.Outside, by, to); err == nil {
				return fmt.Errorf("%s answers", to)
			}
			return nil
		})
	})
}

// wantSource has a pod ask, and checks whom the other end saw, if that has to be somebody.
func (c *cluster) wantSource(from *pod, by string, to netip.AddrPort, want ...netip.Addr) {
	c.t.Helper()
	seen, err := c.ask(from, by, to.Addr().String(), int(to.Port()))
	if err != nil {
		c.t.Error(err)
	} else if len(want) > 0 && !slices.Contains(want, seen) {
		c.t.Errorf("%s from pod %s on node %s to %s comes from %s, want %v", by, from.name, from.node.Name, to, seen, want)
	}
}

// outsider is the outside world's address of a family on the underlay.
func outsider(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr("192.0.2.254")
	}
	return netip.MustParseAddr("2001:db8::fe")
}

// fromOutside: NodePort through each node. With externalTrafficPolicy: Local only the backend's own node answers, and
// the backend sees who asks.
func (c *cluster) fromOutside(backend *pod, s, local *service) {
	c.t.Helper()
	var unanswered sync.WaitGroup // which takes the time that one waits for an answer
	for _, n := range c.Nodes {
		c.everyWay(func(family int, by string) {
			if _, err := c.askFrom(c.Lab.Outside, by, netip.AddrPortFrom(n.Address(family), uint16(s.nodePort))); err != nil {
				c.t.Error(err)
			}
			to := netip.AddrPortFrom(n.Address(family), uint16(local.nodePort))
			if n != backend.node {
				unanswered.Go(func() {
					if _, err := c.askFrom(c.Lab.Outside, by, to); err == nil {
						c.t.Errorf("%s to %s is answered, though the backend is on another node", by, to)
					}
				})
				return
			}
			seen, err := c.askFrom(c.Lab.Outside, by, to)
			if err != nil {
				c.t.Error(err)
			} else if seen != outsider(family) {
				c.t.Errorf("%s from outside to %s comes from %s, want %s", by, to, seen, outsider(family))
			}
		})
	}
	unanswered.Wait()
}

// hostsAsk: programs of the nodes themselves, by the service's address and by their own node's port.
func (c *cluster) hostsAsk(s *service) {
	c.t.Helper()
	for _, n := range c.Nodes {
		c.everyWay(func(family int, by string) {
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(s.address(family), servicePort),
				netip.AddrPortFrom(n.Address(family), uint16(s.nodePort)),
			} {
				if _, err := c.askFrom(n.NS, by, to); err != nil {
					c.t.Error(err)
				}
			}
		})
	}
}

// balance: a service with a pod on each node leads clients on each node to all of them.
func balance(c *cluster) {
	pods := c.run(workload{name: "many-backends", replicas: len(c.Nodes)},
		workload{name: "client", replicas: len(c.Nodes)})
	backends, clients := pods[:len(c.Nodes)], pods[len(c.Nodes):]
	s := c.expose("many-backends", "many-backends", serviceOptions{})
	c.known(s)
	for _, client := range clients {
		for _, family := range []int{4, 6} {
			missing := make(map[string]bool)
			for _, b := range backends {
				missing[b.name] = true
			}
			// A chance of one in two that is missed sixty times is none.
			for tries := 0; len(missing) > 0 && tries < 60; tries++ {
				answer, err := c.dial(client, "tcp", s.address(family).String(), servicePort, "hostname")
				c.ok(err)
				delete(missing, answer)
			}
			if len(missing) > 0 {
				c.t.Errorf("client on node %s never reached %v by %s", client.node.Name, missing, s.address(family))
			}
		}
	}
	c.remove(pods, "many-backends", "client")
}

// hostPorts: a port of the node leads to a pod, by portmap behind Warren's plugin.
func hostPorts(c *cluster) {
	const published = 31000
	pods := c.run(workload{name: "published", replicas: 1, node: c.Nodes[0].Name, hostPort: published},
		workload{name: "client", replicas: len(c.Nodes)})
	server, clients := pods[0], pods[1:]
	c.everyWay(func(family int, by string) {
		to := netip.AddrPortFrom(server.node.Address(family), published)
		for _, from := range []struct {
			ns   *lab.NS
			want netip.Addr
		}{{c.Lab.Outside, outsider(family)}, {c.Nodes[1].NS, c.Nodes[1].Address(family)}} {
			seen, err := c.askFrom(from.ns, by, to)
			if err != nil {
				c.t.Error(err)
			} else if seen != from.want {
				c.t.Errorf("%s from %s to host port %s comes from %s, want %s", by, from.ns.Name, to, seen, from.want)
			}
		}
		for _, client := range clients {
			want := []netip.Addr{client.address(family)}
			if client.node == server.node { // portmap may translate what comes from the pod's own subnet
				cidrs, err := c.PodCIDRs(c.ctx, server.node)
				c.ok(err)
				want = append(want, cidrs[family/6].Addr().Next())
			}
			c.wantSource(client, by, to, want...)
		}
		c.wantSource(server, by, to)
	})
	c.remove(pods, "published", "client")
}

// beside runs what kube-proxy has a part in, with it in a mode on all nodes.
func beside(mode string) func(c *cluster) {
	return func(c *cluster) {
		c.ok(c.SetProxy(c.ctx, mode))
		for _, n := range c.Nodes {
			c.until("rules of kube-proxy on node "+n.Name, func() error { return c.hasRules(n, mode) })
		}
		services(c)
		balance(c)
		hostPorts(c)
	}
}

// hasRules is nil when kube-proxy has rules in this mode, and none in the other.
func (c *cluster) hasRules(n *kube.Node, mode string) error {
	rules, err := n.NS.Run(c.ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	if has := strings.Contains(rules, "table ip kube-proxy"); has != (mode == "nftables") {
		return fmt.Errorf("it has the table kube-proxy: %t", has)
	}
	chains, err := n.NS.Run(c.ctx, "iptables-save", "-t", "nat")
	if err != nil {
		return err
	}
	if has := strings.Contains(chains, "-j KUBE-SVC-"); has != (mode == "iptables") {
		return fmt.Errorf("it has chains of services: %t", has)
	}
	return nil
}
