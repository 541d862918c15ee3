package hostnet

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/warren-net/warren/internal/netsysctl"
)

func (c *checker) forwarding() {
	for _, f := range c.Spec.kernelHas() {
		key := "ipv4/ip_forward"
		if f == v6 {
			key = "ipv6/conf/all/forwarding"
		}
		c.settable("forwarding", key, "1")
	}
}

// settable checks a sysctl that Warren sets itself, if it may.
func (c *checker) settable(what, key, want string) {
	now, err := sysctl(key)
	dotted := "net." + strings.ReplaceAll(key, "/", ".")
	switch {
	case err != nil:
		c.error(what, fmt.Sprintf("%s can't be read: %v", dotted, err), "mount /proc/sys")
	case now == want:
		c.ok(what, "%s is %s", dotted, now)
	case !netsysctl.Settable(key):
		c.error(what, fmt.Sprintf("%s is %s, and Warren may not set it to %s", dotted, now, want),
			fmt.Sprintf("`sysctl -w %s=%s` on the host, or give Warren a writable /proc/sys", dotted, want))
	default:
		c.ok(what, "%s is %s; `warren up` sets it to %s", dotted, now, want)
	}
}

// reversePath looks at the filter that checks pods' IPv4 sources where nftables is missing. The kernel takes the larger
// value of all and the interface.
func (c *checker) reversePath() {
	const what = "rp_filter"
	if !c.Spec.wants(v4) {
		return
	}
	all, err := sysctl("ipv4/conf/all/rp_filter")
	if err != nil {
		c.warn(what, err.Error(), "mount /proc/sys")
		return
	}
	if device, err := sysctl("ipv4/conf/" + c.Spec.Device + "/rp_filter"); err == nil && device != "2" {
		c.warn(what, fmt.Sprintf("it is %s on %s and should be 2: packets from other nodes may be dropped",
			device, c.Spec.Device),
			fmt.Sprintf("`sysctl -w net.ipv4.conf.%s.rp_filter=2`, or start `warren up`, which sets it", c.Spec.Device))
		return
	}
	if all == "2" && c.noNft {
		c.warn(what, "net.ipv4.conf.all.rp_filter is 2 and nftables is missing: pods can send from each other's addresses",
			"`sysctl -w net.ipv4.conf.all.rp_filter=0` (interfaces keep their own value), or a kernel with nftables")
		return
	}
	c.ok(what, "net.ipv4.conf.all.rp_filter is %s", all)
}

// forwardPolicy looks for firewalls that drop what they do not know. Rules in them may well let pods through: that
// can't be seen from here, so it is a warning.
func (c *checker) forwardPolicy() {
	const what = "firewall"
	if c.noNft {
		return
	}
	chains, err := everyChain()
	if err != nil {
		return // nftables has its own finding
	}
	before := len(c.found)
	devices := strings.TrimSuffix(c.Spec.Device+" "+c.Spec.TunnelGSO, " ")
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil ||
			*ch.Policy != nftables.ChainPolicyDrop || ch.Table.Family == nftables.TableFamilyBridge {
			continue
		}
		family := map[nftables.TableFamily]string{
			nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
		}[ch.Table.Family]
		where := fmt.Sprintf("%s %s %s", family, ch.Table.Name, ch.Name)
		mend := fmt.Sprintf(
			"`for i in iifname oifname; do for d in '\"%s*\"' %s; do nft insert rule %s $i $d accept; done; done`",
			PodPrefix, devices, where)
		if ch.Name == "FORWARD" && ch.Table.Name == "filter" {
			tool := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[family]
			mend = fmt.Sprintf("`for d in %s+ %s; do %s -I FORWARD -i $d -j ACCEPT; %s -I FORWARD -o $d -j ACCEPT; done`",
				PodPrefix, devices, tool, tool)
		}
		c.warn(what, fmt.Sprintf("the chain %s drops forwarded packets that no rule of it accepts (Docker, firewalld and "+
			"ufw do that): pods may be cut off", where), mend)
	}
	if len(c.found) == before {
		c.ok(what, "no nftables chain drops forwarded packets by default")
	}
}

func (c *checker) bridgeNetfilter() {
	const what = "bridge netfilter"
	v, err := sysctl("bridge/bridge-nf-call-iptables")
	switch {
	case err != nil:
		c.ok(what, "not loaded; only bridge mode with kube-proxy needs it (`modprobe br_netfilter`)")
	case v == "1":
		c.ok(what, "net.bridge.bridge-nf-call-iptables is 1")
	case c.kubeProxy():
		c.warn(what, "net.bridge.bridge-nf-call-iptables is 0 and kube-proxy is here: in bridge mode, answers of services "+
			"between pods of one node are lost (routed mode is not concerned)",
			"`sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1`")
	default:
		c.ok(what, "net.bridge.bridge-nf-call-iptables is 0; only bridge mode with kube-proxy needs 1")
	}
}

// everyChain lists the chains of all tables, whoever made them.
func everyChain() ([]*nftables.Chain, error) {
	fw := newFirewall()
	defer fw.close()
	return ask(fw, (*nftables.Conn).ListChains)
}

// kubeProxy reports whether kube-proxy's nftables table or its iptables chains are there.
func (c *checker) kubeProxy() bool {
	chains, err := everyChain()
	if err != nil {
		return false
	}
	for _, ch := range chains {
		if ch.Table.Name == "kube-proxy" || ch.Name == "KUBE-SERVICES" {
			return true
		}
	}
	return false
}

// conntrack warns before the table is full: then new connections are dropped, and only the kernel's log says so.
func (c *checker) conntrack() {
	const what = "conntrack"
	number := func(key string) int {
		text, err := sysctl(key)
		n, err2 := strconv.Atoi(text)
		if err != nil || err2 != nil {
			return 0
		}
		return n
	}
	limit, used := number("netfilter/nf_conntrack_max"), number("netfilter/nf_conntrack_count")
	switch {
	case limit == 0:
		c.ok(what, "not in use")
	case used*10 > limit*9:
		c.warn(what, fmt.Sprintf("%d of %d entries are in use: soon new connections are dropped", used, limit),
			fmt.Sprintf("`sysctl -w net.netfilter.nf_conntrack_max=%d`", limit*4))
	default:
		c.ok(what, "%d of %d entries are in use", used, limit)
	}
}
