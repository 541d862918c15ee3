package hostnet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// ErrNoProbes says that nothing stops and counts probes, so that none must be sent.
var ErrNoProbes = errors.New("the nftables chain that counts probes is missing")

const (
	chainProbes  = "probes"
	ipv4TTL      = 8 // offsets in the IP header
	ipv6HopLimit = 7
)

// probes counts and drops the probes of tunnel/tapgso, known by their TTL of 1, behind everything that could have
// dropped them: a probe that arrives here has passed the host's firewall and stays on this machine all the same.
func probes(tap string) chain {
	rule := func(f family, offset uint32) chainRule {
		return chainRule{"a probe of the way of uncut superpackets", join(iifIs(tap), isFamily(f),
			match{payload(expr.PayloadBaseNetworkHeader, offset, 1, 1), eq(1), &expr.Counter{}}, drop())}
	}
	return chain{
		name: chainProbes, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPostrouting,
		priority: math.MaxInt32, // NF_IP_PRI_LAST
		rules:    []chainRule{rule(v4, ipv4TTL), rule(v6, ipv6HopLimit)},
		lost:     "superpackets are not sent uncut (tunnel-gso): that they pass the firewall cannot be proved",
	}
}

// TunnelGSOProbes counts the probes that arrived behind the host's firewall. ErrNoProbes: nothing would stop them.
func TunnelGSOProbes(tap string) (uint64, error) {
	want := probes(tap)
	fw := newFirewall()
	defer fw.close()
	rules, err := fw.rules(inetTable(), want.name)
	if errors.Is(err, unix.ENOENT) || err == nil && len(rules) != len(want.rules) {
		return 0, ErrNoProbes
	}
	if err != nil {
		return 0, fmt.Errorf("%w: listing its rules: %w", ErrNoProbes, missing(err))
	}
	var sum uint64
	for k, r := range rules {
		if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); comment != want.rules[k].comment() {
			return 0, ErrNoProbes
		}
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				sum += c.Packets
			}
		}
	}
	return sum, nil
}

// WatchForwarding calls changed whenever something may have changed that decides whether, and by which device, packets
// are forwarded: links and their features, addresses, routes, policy rules, forwarding, nftables. It runs in the
// calling goroutine until ctx ends; the error says why events can't be had.
func WatchForwarding(ctx context.Context, changed func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wake := make(chan struct{}, 1)
	every := func(syscall.NetlinkMessage) bool { return true }
	err := listen(ctx, unix.NETLINK_ROUTE, wake, every,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return err
	}
	// Without nftables there are no probes either.
	_ = listen(ctx, unix.NETLINK_NETFILTER, wake, every, unix.NFNLGRP_NFTABLES)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			changed()
		}
	}
}
