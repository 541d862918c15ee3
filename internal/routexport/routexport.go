// Package routexport writes what a router has to know so that pods are reached through it without a tunnel: for each
// node's pod CIDR a static route by the node's underlay address, in the language of the router. It is pure.
package routexport

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-net/warren/internal/printable"
)

// A Format is the language of a router.
type Format string

// The formats.
const (
	IP   Format = "ip"   // a shell script that calls ip(8), to be run as root
	BIRD Format = "bird" // two static protocols for BIRD 2 and 3
	FRR  Format = "frr"  // static routes as FRR's vtysh and frr.conf take them
)

// Formats are all of them.
func Formats() []string { return []string{string(IP), string(BIRD), string(FRR)} }

// A Node is one whose pods are to be reached.
type Node struct {
	Name      string
	Addresses []netip.Addr   // on the underlay, at most one per family
	PodCIDRs  []netip.Prefix // masked
}

// A route is one line.
type route struct {
	node string
	dst  netip.Prefix
	via  netip.Addr
}

func (r route) is4() bool { return r.dst.Addr().Is4() }

// Write writes the routes of the nodes, and says which pod CIDRs it had to leave out and why.
func Write(format Format, nodes []Node) (text string, leftOut []string, err error) {
	write := map[Format]func(*bytes.Buffer, []route){IP: writeIP, BIRD: writeBIRD, FRR: writeFRR}[format]
	if write == nil {
		return "", nil, fmt.Errorf("format %q: use one of %s", format, strings.Join(Formats(), ", "))
	}
	var routes []route
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			via, ok := nextHop(format, c, n.Addresses)
			if !ok {
				leftOut = append(leftOut, fmt.Sprintf("%s of node %s is left out: a route to it needs an %s address of the node",
					c, printable.Text(n.Name), families(format, c)))
				continue
			}
			routes = append(routes, route{printable.Text(n.Name), c, via})
		}
	}
	slices.SortStableFunc(routes, func(a, b route) int { return a.dst.Compare(b.dst) })
	var b bytes.Buffer
	write(&b, routes)
	return b.String(), leftOut, nil
}

// nextHop is the address by which a node's pods are reached: of their own family, or for IPv4 an IPv6 one (RFC 5549),
// which FRR's static routes do not know.
func nextHop(format Format, c netip.Prefix, addrs []netip.Addr) (netip.Addr, bool) {
	for _, is4 := range []bool{c.Addr().Is4(), false} {
		if is4 != c.Addr().Is4() && format == FRR {
			continue
		}
		for _, a := range addrs {
			if a.Is4() == is4 {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func families(format Format, c netip.Prefix) string {
	switch {
	case !c.Addr().Is4():
		return "IPv6"
	case format == FRR:
		return "IPv4"
	}
	return "IPv4 or IPv6"
}

func writeIP(b *bytes.Buffer, routes []route) {
	b.WriteString("#!/bin/sh\n# The way to the pods of Warren's nodes; run this as root on the router, again when nodes " +
		"come or go.\nset -e\n")
	for _, r := range routes {
		command, via := "ip route replace", r.via.String()
		if !r.is4() {
			command = "ip -6 route replace"
		} else if !r.via.Is4() {
			via = "inet6 " + via
		}
		fmt.Fprintf(b, "%s %s via %s proto static # %s\n", command, r.dst, via, r.node)
	}
}

func writeBIRD(b *bytes.Buffer, routes []route) {
	b.WriteString("# The way to the pods of Warren's nodes: include this in bird.conf. It reaches the kernel by a\n" +
		"# `protocol kernel` for each family whose channel exports it.\n")
	for _, p := range []struct {
		name, channel string
		is4           bool
	}{{"warren4", "ipv4", true}, {"warren6", "ipv6", false}} {
		fmt.Fprintf(b, "protocol static %s {\n\t%s;\n", p.name, p.channel)
		for _, r := range routes {
			if r.is4() == p.is4 {
				fmt.Fprintf(b, "\troute %s via %s; # %s\n", r.dst, r.via, r.node)
			}
		}
		b.WriteString("}\n")
	}
}

func writeFRR(b *bytes.Buffer, routes []route) {
	b.WriteString("! The way to the pods of Warren's nodes: for frr.conf, or `vtysh -f` beside a running staticd.\n")
	for _, r := range routes {
		command := "ip route"
		if !r.is4() {
			command = "ipv6 route"
		}
		fmt.Fprintf(b, "! %s\n%s %s %s\n", r.node, command, r.dst, r.via)
	}
}
