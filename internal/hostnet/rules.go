package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A rule is one of Warren's policy rules, comparable.
type rule struct {
	family   family
	priority int
	iif      string
	from     netip.Prefix // the zero Prefix: from all
	mark     uint32       // also its mask; 0: none
	table    int          // 0: none, the rule says unreachable
	odd      bool         // has a match or action that none of Warren's rules has
}

func (r rule) String() string {
	match := "from all"
	if r.from.IsValid() {
		match = "from " + r.from.String()
	}
	if r.iif != "" {
		match += " iif " + r.iif
	}
	if r.mark != 0 {
		match += fmt.Sprintf(" fwmark %#x/%#x", r.mark, r.mark)
	}
	if r.table == 0 {
		return fmt.Sprintf("%s %d: %s unreachable", r.family, r.priority, match)
	}
	return fmt.Sprintf("%s %d: %s lookup %d", r.family, r.priority, match, r.table)
}

// rules are the policy rules of the package comment.
func (s Spec) rules(families []family) []rule {
	var rs []rule
	for _, f := range families {
		rs = append(rs,
			rule{family: f, priority: s.RulePriority + slotMain, iif: s.Device, table: unix.RT_TABLE_MAIN},
			rule{family: f, priority: s.RulePriority + slotNoRoute, iif: s.Device})
		for _, g := range s.Gateways {
			if familyOf(g) == f {
				from := netip.PrefixFrom(g, g.BitLen())
				rs = append(rs, rule{family: f, priority: s.RulePriority + slotGateway, from: from, table: unix.RT_TABLE_MAIN})
			}
		}
		for _, p := range s.podCIDRs(f) {
			rs = append(rs,
				// Others may use the bit for packets of their own, so the mark alone is no match.
				rule{family: f, priority: s.RulePriority + slotMain, from: p, mark: s.Mark, table: unix.RT_TABLE_MAIN},
				rule{family: f, priority: s.RulePriority + slotPods, from: p, table: s.Table})
		}
		for _, a := range s.strays() {
			if familyOf(a) == f {
				from := netip.PrefixFrom(a, a.BitLen())
				rs = append(rs, rule{family: f, priority: s.RulePriority + slotPods, from: from, table: s.Table})
			}
		}
	}
	return rs
}

// strays are addresses of pods that were attached when the node had other pod CIDRs. No node knows a way to them any
// more; their packets still have to go to the device, where they are refused, and not to the main table's default
// route.
func (s Spec) strays() []netip.Addr {
	var out []netip.Addr
	for _, p := range s.Pods {
		for _, a := range p.Addrs {
			if !slices.ContainsFunc(s.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
				out = append(out, a)
			}
		}
	}
	return out
}

// guardRules are those of rs that lead packets of pods to Warren's table, and those that keep the gateway addresses'
// own packets out of it: in mode bridge the bridge holds these addresses without the device too, and the node reaches
// its pods from them.
func guardRules(rs []rule) []rule {
	return slices.DeleteFunc(rs, func(r rule) bool {
		return !r.from.IsValid() || r.table == unix.RT_TABLE_MAIN && r.mark != 0
	})
}

// syncRules adds the rules that are missing, then removes those of Warren's that are not wanted.
func syncRules(h *netlink.Handle, families []family, want []rule, c *Changes) error {
	var errs []error
	type found struct {
		rule
		raw netlink.Rule
	}
	var have []found
	for _, f := range kernelFamilies() {
		raws, err := listRules(h, f)
		if err != nil {
			return err
		}
		for _, raw := range raws {
			if raw.Protocol == Protocol {
				have = append(have, found{ruleOf(raw), raw})
			}
		}
	}
	for _, w := range want {
		there := slices.ContainsFunc(have, func(h found) bool { return h.rule == w })
		if there || !slices.Contains(families, w.family) {
			continue
		}
		// EEXIST: somebody set the same rule without the protocol. It does what ours would, and it stays theirs.
		if err := h.RuleAdd(w.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("adding rule %s: %w", w, err))
			continue
		}
		c.add("rule %s added", w)
	}
	for _, f := range have {
		if slices.Contains(want, f.rule) {
			continue
		}
		if err := h.RuleDel(&f.raw); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("removing rule %s: %w", f.rule, err))
			continue
		}
		c.add("rule %s removed", f.rule)
	}
	return errors.Join(errs...)
}

// ownRules lists Warren's rules as they are.
func ownRules(h *netlink.Handle, families []family) ([]rule, error) {
	var rs []rule
	for _, f := range families {
		raws, err := listRules(h, f)
		if err != nil {
			return nil, err
		}
		for _, raw := range raws {
			if raw.Protocol == Protocol {
				rs = append(rs, ruleOf(raw))
			}
		}
	}
	return rs, nil
}

func listRules(h *netlink.Handle, f family) ([]netlink.Rule, error) {
	raws, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(int(f)) })
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("listing %s rules: %w: the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES, "+
			"CONFIG_IPV6_MULTIPLE_TABLES), which Warren needs", f, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s rules: %w", f, err)
	}
	return raws, nil
}

func ruleOf(n netlink.Rule) rule {
	r := rule{family: family(n.Family), priority: n.Priority, iif: n.IifName, mark: n.Mark, table: n.Table}
	if n.Src != nil {
		r.from = prefixOf(n.Src, r.family)
	}
	r.odd = n.Dst != nil || n.OifName != "" || n.Invert || n.Tos != 0 || n.IPProto != 0 || n.Goto > 0 ||
		n.SuppressPrefixlen >= 0 || n.SuppressIfgroup >= 0 || n.Sport != nil || n.Dport != nil || n.UIDRange != nil ||
		n.Mask != nil && n.Mark != *n.Mask
	return r
}

func (r rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.IifName, n.Table, n.Protocol = int(r.family), r.priority, r.iif, r.table, Protocol
	if r.table == 0 {
		n.Type = nl.FR_ACT_UNREACHABLE
	}
	if r.from.IsValid() {
		n.Src = ipNet(r.from)
	}
	if r.mark != 0 {
		mask := r.mark
		n.Mark, n.Mask = r.mark, &mask
	}
	return n
}
