//go:build cluster

package kube_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/internal/lab"
)

// resolve: pods on every node find a service by its name, short and long, and each address of the cluster's DNS answers
// them, by UDP and TCP.
func resolve(c *cluster) {
	c.ok(c.InstallDNS(c.ctx))
	pods := c.run(workload{name: "named", replicas: 1}, workload{name: "client", replicas: len(c.Nodes)})
	s := c.expose("named", "named", serviceOptions{})
	c.known(s)
	const full = "named.default.svc.cluster.local"
	for _, client := range pods[1:] {
		within := c.within(client)
		for _, server := range []string{"10.96.0.10:53", "[fd00:10:96::a]:53"} {
			for _, by := range []string{"udp", "tcp"} {
				c.until(fmt.Sprintf("DNS server %s by %s, for a pod on node %s", server, by, client.node.Name), func() error {
					addresses, err := c.lookup(within, by, server, full)
					if err == nil && !slices.Equal(addresses, s.addresses) {
						err = fmt.Errorf("%s is %v, want %v", full, addresses, s.addresses)
					}
					return err
				})
			}
		}
		for _, name := range []string{"named", full} {
			seen, err := c.ask(client, "tcp", name, servicePort)
			if err != nil {
				c.t.Error(err)
			} else if seen != client.v4 && seen != client.v6 {
				c.t.Errorf("pod %s asks %s as %s", client.name, name, seen)
			}
		}
	}
	c.remove(pods, "named", "client")
}

// lookup asks one DNS server, by one protocol, from a namespace.
func (c *cluster) lookup(from *lab.NS, by, server, name string) ([]netip.Addr, error) {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = from.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, by, server)
			return err
		})
		return conn, err
	}}
	addresses, err := resolver.LookupNetIP(c.ctx, "ip", name+".")
	for i := range addresses {
		addresses[i] = addresses[i].Unmap()
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return addresses, err
}
