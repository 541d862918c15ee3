package cni

import (
	"crypto/sha256"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
)

// attachForDHCP does the steps in the order that DHCP needs (RFC 2131): the pod's end is up and on the bridge before
// it has an address, and may send nothing but its questions. The IPAM plugin asks there.
func (a *attachment) attachForDHCP() error {
	a.rec.MTU = a.mtu
	if a.podMAC == nil {
		// Of the container, as there is no address to make it from: a server that knows the pod gives the same again.
		sum := sha256.Sum256([]byte(a.rec.HostIfName))
		a.podMAC = net.HardwareAddr{0x0e, macDHCP, sum[0], sum[1], sum[2], sum[3]}
	}
	a.rec.MAC = a.podMAC.String()
	if err := a.writeRecord(podrecord.Create); err != nil {
		return err
	}
	if err := a.stillServed(); err != nil {
		return err
	}
	a.given = a.gateways()
	if len(a.given) == 0 {
		return fail(types.ErrInvalidNetworkConfig, "ipam.type is \"dhcp\", which gives IPv4 addresses, but the node's "+
			"pod CIDRs are %v: give the node one of IPv4, or remove ipam", a.node.PodCIDRs)
	}
	if err := a.ensureBridge(); err != nil {
		return err
	}
	a.given = nil
	if err := a.uniqueMAC(); err != nil {
		return err
	}
	if err := a.makeVeth(); err != nil {
		return err
	}
	link, err := a.preparePod()
	if err == nil {
		err = a.pod.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("setting up %s in the pod: %w", a.rec.IfName, err)
	}
	if err := a.setUpPort(); err != nil {
		return err
	}
	if err := a.awaitCarrier(); err != nil {
		return err
	}
	if err := a.ask(); err != nil {
		return err
	}
	if err := a.fits(); err != nil {
		return err
	}
	if err := a.addAddresses(link); err != nil {
		return err
	}
	if err := a.addRoutes(link); err != nil {
		return err
	}
	if err := a.checked(); err != nil {
		return err
	}
	return a.announce()
}

// gateways are what the bridge has to hold before anybody has an address: the node's, of the pod CIDRs that DHCP can
// give addresses of.
func (a *attachment) gateways() []ipam.Allocation {
	var own []ipam.Allocation
	for _, cidr := range a.node.PodCIDRs {
		if gateway, ok := a.node.Gateway(cidr); ok && cidr.Addr().Is4() {
			own = append(own, ipam.Allocation{Gateway: gateway, Subnet: cidr})
		}
	}
	return own
}
