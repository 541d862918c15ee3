package kubernetes

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
)

// Domain is the prefix of all of Warren's annotations.
const Domain = "warren.network/"

// Annotations of a Node object. All but AnnotationOverrideAddresses belong to the node's daemon, which puts them back
// when somebody changes them; a node that runs no daemon, but a kernel VXLAN device, may get them by hand.
const (
	AnnotationPublicKey     = Domain + "public-key"     // of the encrypted tunnel, 44 characters of base64
	AnnotationWireGuardPort = Domain + "wireguard-port" // UDP port, when not the cluster's
	AnnotationEncapsulation = Domain + "encapsulation"  // wireguard or vxlan
	AnnotationVXLANPort     = Domain + "vxlan-port"     // UDP port, when not the cluster's
	AnnotationVXLANMAC      = Domain + "vxlan-mac"      // of the VTEP, when not derived from the address
	AnnotationAddresses     = Domain + "addresses"      // of the tunnel on the underlay, with commas between

	// AnnotationOverrideAddresses is for people: it goes before AnnotationAddresses and status.addresses, and no daemon
	// writes it.
	AnnotationOverrideAddresses = Domain + "override-addresses"
)

// published are the daemon's annotations.
var published = [...]string{AnnotationPublicKey, AnnotationWireGuardPort, AnnotationEncapsulation, AnnotationVXLANPort,
	AnnotationVXLANMAC, AnnotationAddresses}

// annotations are what the daemon's annotations are to be for the node; one that is not in the map is not to be there.
func annotations(n *control.Node) map[string]string {
	out := map[string]string{}
	set := func(name, value string, there bool) {
		if there {
			out[name] = value
		}
	}
	set(AnnotationPublicKey, n.PublicKey.String(), !n.PublicKey.IsZero())
	set(AnnotationWireGuardPort, strconv.Itoa(int(n.WireGuardPort)), n.WireGuardPort != 0)
	set(AnnotationEncapsulation, string(n.Encapsulation), n.Encapsulation != "")
	set(AnnotationVXLANPort, strconv.Itoa(int(n.Port)), n.Port != 0)
	set(AnnotationVXLANMAC, n.MAC.String(), n.MAC != nil)
	var addresses []string
	for _, a := range n.Addresses {
		addresses = append(addresses, a.String())
	}
	set(AnnotationAddresses, strings.Join(addresses, ","), addresses != nil)
	return out
}

// An annotationError is an annotation that cannot be read.
type annotationError struct{ name, value, why, fix string }

func (e *annotationError) Error() string {
	return fmt.Sprintf("annotation %s: %s %s; %s", e.name, excerpt(e.value), e.why, e.fix)
}

// excerpt quotes what a message has room for: an annotation may hold 256 KiB of anything.
func excerpt(text string) string {
	const shown = 24 // characters
	if runes := []rune(text[:min(len(text), 4*(shown+1))]); len(runes) > shown {
		text = string(runes[:shown]) + "…"
	}
	return strconv.Quote(text)
}

// A reader reads annotations into a node.
type reader struct {
	from map[string]string
	to   *control.Node
}

// read reads the named annotation if it is there.
func (r reader) read(name string) error {
	text, there := r.from[name]
	if !there {
		return nil
	}
	wrong := func(why, fix string) error { return &annotationError{name, text, why, fix} }
	switch name {
	case AnnotationPublicKey:
		k, err := key.ParsePublic(text)
		if err != nil {
			return wrong("is not a public key", "it has to be the 44 characters that `warren key public` prints on that node")
		}
		r.to.PublicKey = k
	case AnnotationEncapsulation:
		e := control.Encapsulation(text)
		if !e.Known() {
			return wrong("is not an encapsulation that this version of Warren knows",
				"it has to be wireguard, vxlan, direct or auto; if a newer Warren wrote it, upgrade this node's")
		}
		r.to.Encapsulation = e
	case AnnotationWireGuardPort:
		return port(text, &r.to.WireGuardPort, wrong)
	case AnnotationVXLANPort:
		return port(text, &r.to.Port, wrong)
	case AnnotationVXLANMAC:
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
			return wrong("is not the Ethernet address of one station", "it has to be one such as 0e:57:c0:00:02:01")
		}
		r.to.MAC = mac
	case AnnotationAddresses, AnnotationOverrideAddresses:
		return r.addresses(text, wrong)
	}
	return nil
}

func port(text string, into *uint16, wrong func(why, fix string) error) error {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return wrong("is not a UDP port", "it has to be a number from 1 to 65535")
	}
	*into = uint16(n)
	return nil
}

func (r reader) addresses(text string, wrong func(why, fix string) error) error {
	var all []netip.Addr
	for item := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(item))
		if err != nil {
			return wrong("is not a list of IP addresses", "write them as 192.0.2.1,2001:db8::1")
		}
		a = a.Unmap()
		if why := unusable(a); why != "" {
			return wrong("holds "+a.String()+", "+why, "use addresses at which the other nodes reach that node")
		}
		for _, o := range all {
			if o.Is4() == a.Is4() {
				return wrong("holds two addresses of one family", "keep the one that the other nodes are to send to")
			}
		}
		all = append(all, a)
	}
	r.to.Addresses = all
	return nil
}

// unusable says why nobody can send to a node at the address; empty: they can.
func unusable(a netip.Addr) string {
	switch {
	case a.Zone() != "" || a.IsLinkLocalUnicast():
		return "which is link-local"
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "which is no host's on the underlay"
	}
	return ""
}
