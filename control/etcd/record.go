package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/printable"
)

// recordVersion is the version of all records that this program writes, and the newest that it reads. A later version
// may add fields without changing it, as long as those who do not know them are right to leave them out.
const recordVersion = 1

// ErrNewer says that a record was written by a newer version of Warren.
var ErrNewer = errors.New("written by a newer version of Warren")

// A record is the value of a node's key.
type record struct {
	Version   int            `json:"version"`
	ID        string         `json:"id"`              // of the host that has the name; in its state directory too
	Since     int64          `json:"since,omitempty"` // seconds since 1970 by the node's clock; for people
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Addresses []netip.Addr   `json:"addresses"`

	MAC           string `json:"mac,omitempty"`
	Port          uint16 `json:"port,omitempty"`
	PublicKey     string `json:"publicKey,omitempty"`
	WireGuardPort uint16 `json:"wireGuardPort,omitempty"`
	Encapsulation string `json:"encapsulation,omitempty"`
}

// A leased is the value of the key that says since when a node has its pod CIDRs: nothing but another CIDR changes it.
type leased struct {
	Version  int            `json:"version"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

func decodeLeased(data []byte) ([]netip.Prefix, error) {
	var l leased
	if err := unmarshal(data, &l, &l.Version); err != nil {
		return nil, err
	}
	return l.PodCIDRs, nil
}

// same reports whether writing a over b would change nothing.
func (r *record) same(o *record) bool {
	return r.ID == o.ID && r.Since == o.Since && slices.Equal(r.PodCIDRs, o.PodCIDRs) &&
		slices.Equal(r.Addresses, o.Addresses) && r.MAC == o.MAC && r.Port == o.Port && r.PublicKey == o.PublicKey &&
		r.WireGuardPort == o.WireGuardPort && r.Encapsulation == o.Encapsulation
}

// tell fills in what the node wants to be told.
func (r *record) tell(n *control.Node) {
	r.Addresses, r.Port, r.WireGuardPort = n.Addresses, n.Port, n.WireGuardPort
	r.Encapsulation = string(n.Encapsulation)
	r.MAC, r.PublicKey = "", ""
	if n.MAC != nil {
		r.MAC = n.MAC.String()
	}
	if !n.PublicKey.IsZero() {
		r.PublicKey = n.PublicKey.String()
	}
}

func (r *record) marshal() string { return marshal(r) }

// marshal is for records of this package, of which none can fail.
func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("etcd: " + err.Error())
	}
	return string(b)
}

// unmarshal reads a record of any kind into v, whose version field is given by version.
func unmarshal(data []byte, v any, version *int) error {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("its record is not JSON as Warren writes it: %w", err)
	}
	switch {
	case head.Version > recordVersion:
		return fmt.Errorf("its record has version %d, %w, and this one reads up to %d: upgrade Warren here", head.Version,
			ErrNewer, recordVersion)
	case head.Version < 1:
		return fmt.Errorf("its record has version %d, and the first one is 1: something else than Warren wrote it",
			head.Version)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("its record is not JSON as Warren writes it: %w", err)
	}
	*version = head.Version
	return nil
}

// decodeNode turns the record of the named node into what the others are to know. Whatever is wrong with it, the name
// is known, and Broken says why the rest is not.
func decodeNode(name string, data []byte, order int64) (control.Node, *record) {
	broken := func(err error) (control.Node, *record) {
		why := fmt.Sprintf("node %s in etcd: %s", printable.Name(name), err)
		return control.Node{Name: name, Order: order, Broken: why}, nil
	}
	if err := CheckName("node", name); err != nil {
		return broken(err)
	}
	var r record
	if err := unmarshal(data, &r, &r.Version); err != nil {
		if !errors.Is(err, ErrNewer) {
			err = fmt.Errorf("%w; restart Warren on that host, which writes it again, or delete the key", err)
		}
		return broken(err)
	}
	n := control.Node{Name: name, Addresses: r.Addresses, PodCIDRs: r.PodCIDRs, Port: r.Port,
		WireGuardPort: r.WireGuardPort, Encapsulation: control.Encapsulation(r.Encapsulation), Order: order}
	var err error
	if r.MAC != "" {
		if n.MAC, err = net.ParseMAC(r.MAC); err != nil || len(n.MAC) != 6 {
			return broken(fmt.Errorf("mac %q is not an Ethernet address; restart Warren on that host", r.MAC))
		}
	}
	if r.PublicKey != "" {
		if n.PublicKey, err = key.ParsePublic(r.PublicKey); err != nil {
			return broken(fmt.Errorf("publicKey is none: %w; restart Warren on that host", err))
		}
	}
	if err := errors.Join(checkAddresses(r.Addresses), checkCIDRs(r.PodCIDRs)); err != nil {
		return broken(fmt.Errorf("%w; restart Warren on that host", err))
	}
	return n, &r
}

// checkAddresses holds what control.Node promises of underlay addresses.
func checkAddresses(list []netip.Addr) error {
	for i, a := range list {
		switch {
		case !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() ||
			a.IsLinkLocalUnicast():
			return fmt.Errorf("address %q is not one at which a node is reached", a)
		case slices.ContainsFunc(list[:i], func(o netip.Addr) bool { return o.Is4() == a.Is4() }):
			return fmt.Errorf("address %s is a second one of its family", a)
		}
	}
	return nil
}

// checkCIDRs holds what control.Node promises of pod CIDRs.
func checkCIDRs(list []netip.Prefix) error {
	for i, p := range list {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() || p.Bits() == 0:
			return fmt.Errorf("pod CIDR %q is not an address range", p)
		case slices.ContainsFunc(list[:i], func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }):
			return fmt.Errorf("pod CIDR %s is a second one of its family", p)
		}
	}
	return nil
}
