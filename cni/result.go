package cni

import (
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// prevResult is what the plugins before this one made of the pod; nil when there are none.
func (c *Config) prevResult() (*current.Result, error) {
	if c.PrevResult == nil {
		return nil, nil
	}
	result, err := create.Create(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult is no result of CNI version %s: %w", c.CNIVersion, err)
	}
	converted, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult: %w", err)
	}
	return converted, nil
}

// result says what ADD did, after what the plugins before it had done.
func (a *attachment) result(prev *current.Result) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: a.DNS}
	if prev != nil {
		r.Interfaces, r.IPs, r.Routes = prev.Interfaces, prev.IPs, prev.Routes
		if r.DNS.IsEmpty() {
			r.DNS = prev.DNS
		}
	}
	mtu := 0
	if new11, err := version.GreaterThanOrEqualTo(a.CNIVersion, "1.1.0"); err == nil && new11 {
		mtu = a.mtu // the field is new in 1.1.0
	}
	if a.bridge != nil {
		r.Interfaces = append(r.Interfaces, &current.Interface{
			Name: a.Bridge, Mac: a.bridge.HardwareAddr.String(), Mtu: min(mtu, a.bridge.Attrs().MTU),
		})
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: a.rec.HostIfName, Mac: a.hostMAC.String(), Mtu: mtu},
		&current.Interface{Name: a.rec.IfName, Mac: a.podMAC.String(), Mtu: mtu, Sandbox: a.pod.path})
	pod := len(r.Interfaces) - 1
	for _, g := range a.given {
		bits := g.Addr.BitLen()
		if a.Mode == ModeBridge {
			bits = g.Subnet.Bits()
		}
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(pod), Gateway: g.Gateway.AsSlice(),
			Address: net.IPNet{IP: g.Addr.AsSlice(), Mask: net.CIDRMask(bits, g.Addr.BitLen())},
		})
	}
	for _, route := range a.routes {
		r.Routes = append(r.Routes, route.Copy())
	}
	return r
}
