package kubernetes

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-net/warren/control"
)

// Pod CIDRs hold the network's own address, the gateway and at least one pod.
const minHostBits = 2

// A gap is what a node still lacks, or the reason of a claim that cannot be read. The zero value is none.
type gap struct{ what, fix string }

func (g gap) String() string { return g.what + "; " + g.fix }

// translate reads a Node object. missing says what it lacks so far; such a node is not there yet.
//
// Of the own node the daemon's annotations are hints: what is wrong in them will be overwritten, and must not keep the
// daemon from starting, which is what overwrites it.
func translate(obj *corev1.Node, own bool) (n control.Node, missing gap) {
	n.Name = strings.Clone(obj.Name)
	n.Order = obj.CreationTimestamp.Unix()
	broken := func(err error) (control.Node, gap) {
		return control.Node{Name: n.Name, Broken: fmt.Sprintf("Node %s: %v", n.Name, err)}, gap{}
	}
	r := reader{from: obj.Annotations, to: &n}
	for _, name := range published {
		if err := r.read(name); err != nil && !own {
			return broken(fmt.Errorf("%w (its daemon writes it: look at its log; `kubectl annotate node %s %s-` removes it)",
				err, n.Name, name))
		}
	}
	if err := r.read(AnnotationOverrideAddresses); err != nil {
		return broken(fmt.Errorf("%w (`kubectl annotate --overwrite node %s %s=ADDRESS`)", err, n.Name,
			AnnotationOverrideAddresses))
	}
	if n.Addresses == nil {
		if err := internalIPs(obj, &n); err != nil {
			return broken(err)
		}
	}
	if err := podCIDRs(obj, &n); err != nil {
		return broken(err)
	}
	switch {
	case len(n.PodCIDRs) == 0:
		missing = gap{fmt.Sprintf("Node %s has no spec.podCIDRs", n.Name),
			"kube-controller-manager gives them, with --allocate-node-cidrs=true and --cluster-cidr (kubeadm: " +
				"networking.podSubnet); if it has run out of them, widen --cluster-cidr"}
	case len(n.Addresses) == 0:
		missing = gap{fmt.Sprintf("Node %s has no InternalIP in status.addresses", n.Name),
			"its kubelet (--node-ip) or the cloud's controller sets one; or name the address of the tunnel by `kubectl " +
				"annotate node " + n.Name + " " + AnnotationOverrideAddresses + "=ADDRESS`"}
	case n.PublicKey.IsZero() && !n.Plaintext() && !own:
		missing = gap{fmt.Sprintf("Node %s has no annotation %s", n.Name, AnnotationPublicKey),
			"its Warren daemon writes it when it starts: look at the pod of the DaemonSet on that node"}
	}
	return n, missing
}

// internalIPs takes the first usable InternalIP of each family.
func internalIPs(obj *corev1.Node, n *control.Node) error {
	var first error
	for _, entry := range obj.Status.Addresses {
		if entry.Type != corev1.NodeInternalIP {
			continue
		}
		a, err := netip.ParseAddr(entry.Address)
		a = a.Unmap()
		why := "which is no IP address"
		if err == nil {
			why = unusable(a)
		}
		if why != "" {
			if first == nil {
				first = fmt.Errorf("status.addresses has InternalIP %s, %s; set the kubelet's --node-ip, or annotate the node "+
					"with %s", excerpt(entry.Address), why, AnnotationOverrideAddresses)
			}
			continue
		}
		if len(n.Addresses) == 0 || len(n.Addresses) == 1 && n.Addresses[0].Is4() != a.Is4() {
			n.Addresses = append(n.Addresses, a)
		}
	}
	if n.Addresses != nil {
		return nil
	}
	return first
}

func podCIDRs(obj *corev1.Node, n *control.Node) error {
	for _, text := range obj.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		why := ""
		switch {
		case err != nil:
			why = "is not an address range"
		case p.Addr().Is4In6(), p.Bits() == 0, p.Addr().IsMulticast(), p.Addr().IsLoopback(), p.Addr().IsLinkLocalUnicast():
			why = "is not a range that pods can have"
		case p.Addr().BitLen()-p.Bits() < minHostBits:
			why = "is too small: it holds no pod beside the gateway"
		case len(n.PodCIDRs) > 1, len(n.PodCIDRs) == 1 && n.PodCIDRs[0].Addr().Is4() == p.Addr().Is4():
			why = "is a second one of its family"
		}
		if why != "" {
			return fmt.Errorf("spec.podCIDRs has %s, which %s; kube-controller-manager gives them (--cluster-cidr, "+
				"--node-cidr-mask-size): delete the Node object and let the kubelet register again once that is right",
				excerpt(text), why)
		}
		n.PodCIDRs = append(n.PodCIDRs, p.Masked())
	}
	return nil
}
