package kube

import (
	"context"
	_ "embed"
	"strings"
)

//go:embed coredns.yaml
var corednsManifest string

// InstallDNS runs CoreDNS as the cluster's DNS, and waits until it is ready.
func (c *Cluster) InstallDNS(ctx context.Context) error {
	manifest := strings.NewReplacer("IMAGE", corednsImage, "ADDRESS4", dnsAddresses()[0],
		"ADDRESS6", dnsAddresses()[1]).Replace(corednsManifest)
	if err := c.Apply(ctx, manifest); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "--namespace=kube-system", "rollout", "status", "deployment/coredns",
		"--timeout="+startWait.String())
	return err
}
