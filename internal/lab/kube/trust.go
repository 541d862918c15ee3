package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Kubelet is the kubelet of a node.
func (c *Cluster) Kubelet(n *Node) (Client, error) {
	path := c.pki.kubeconfigFile(kubeletFile(n))
	_, err := os.Stat(path)
	return Client{"--kubeconfig=" + path}, err
}

// Daemon is Warren's daemon on a node: its service account, by a token of its pod there.
func (c *Cluster) Daemon(ctx context.Context, n *Node) (Client, error) {
	pods, err := c.Kubectl(ctx, "--namespace="+namespace, "get", "pods", "-o", "name",
		"--field-selector=spec.nodeName="+n.Name)
	if err != nil {
		return nil, err
	}
	pod, found := strings.CutPrefix(strings.TrimSpace(pods), "pod/")
	if !found || strings.Contains(pod, "\n") {
		return nil, fmt.Errorf("pods of Warren on node %s: %q, want one", n.Name, pods)
	}
	token, err := c.Kubectl(ctx, "--namespace="+namespace, "create", "token", "warren", "--bound-object-kind=Pod",
		"--bound-object-name="+pod)
	if err != nil {
		return nil, err
	}
	return Client{"--kubeconfig=" + os.DevNull, "--server=" + c.control.url(),
		"--certificate-authority=" + c.pki.caFile(), "--token=" + strings.TrimSpace(token)}, nil
}

// OwnNodePolicy is the manifest of the policy that lets a daemon change its own node only.
func (c *Cluster) OwnNodePolicy() (string, error) {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(c.Options.Manifest), "own-node", "policy.yaml"))
	return string(b), err
}
