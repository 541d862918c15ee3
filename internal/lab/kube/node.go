package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
)

// A Node of the cluster: a machine with containerd, a kubelet and kube-proxy.
type Node struct {
	*lab.Node
	Runtime *cri.Runtime

	cluster  *Cluster
	kubelet  *cri.Process
	proxy    *cri.Process
	podCIDRs []netip.Prefix // see Cluster.PodCIDRs
}

// AddNodes makes nodes that join the cluster by themselves, and waits until they are ready.
func (c *Cluster) AddNodes(ctx context.Context, names ...string) ([]*Node, error) {
	var nodes []*Node
	for _, name := range names {
		host, err := c.Lab.AddNode(name)
		if err != nil {
			return nil, err
		}
		n := &Node{Node: host, cluster: c}
		n.Runtime, err = cri.Install(ctx, c.Lab, host, cri.Options{
			Plugins: filepath.Join(c.Options.BinDir, "cni"), Images: c.images, Machine: true,
		})
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	c.Nodes = append(c.Nodes, nodes...)
	if err := each(nodes, func(n *Node) error { return n.Boot(ctx) }); err != nil {
		return nodes, err
	}
	if err := each(nodes, func(n *Node) error { return n.WaitReady(ctx) }); err != nil {
		return nodes, err
	}
	return nodes, c.waitNetwork(ctx)
}

// Boot starts what a node starts when it boots: containerd, the kubelet, kube-proxy.
func (n *Node) Boot(ctx context.Context) error {
	if err := n.Runtime.Boot(ctx); err != nil {
		return err
	}
	if err := n.Runtime.Start(ctx); err != nil {
		return err
	}
	if err := n.startKubelet(); err != nil {
		return fmt.Errorf("kubelet of node %s: %w", n.Name, err)
	}
	// kube-proxy looks once what addresses the node has, for the ports of services.
	if err := n.waitRegistered(ctx); err != nil {
		return err
	}
	return n.startProxy(n.cluster.Options.Proxy)
}

// waitRegistered waits until the kubelet has told the API server of the node's present addresses.
func (n *Node) waitRegistered(ctx context.Context) error {
	return eventually(ctx, startWait, "addresses of node "+n.Name, func() error {
		var object struct {
			Status struct {
				Addresses []struct{ Type, Address string }
			}
		}
		if err := n.cluster.Get(ctx, &object, "node", n.Name); err != nil {
			return fmt.Errorf("%w; the kubelet's log:\n%s", err, n.kubelet.LogTail())
		}
		var got []string
		for _, a := range object.Status.Addresses {
			if a.Type == "InternalIP" {
				got = append(got, a.Address)
			}
		}
		if want := []string{n.V4.String(), n.V6.String()}; !slices.Equal(got, want) {
			return fmt.Errorf("they are %v, want %v", got, want)
		}
		return nil
	})
}

// WaitReady waits until the API server says that the node is ready.
func (n *Node) WaitReady(ctx context.Context) error {
	_, err := n.cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "node/"+n.Name, "--timeout="+startWait.String())
	if err != nil {
		return fmt.Errorf("%w; the kubelet's log:\n%s", err, n.kubelet.LogTail())
	}
	return nil
}

// kubeletFile is the name of what the authority wrote for a node's kubelet.
func kubeletFile(n *Node) string { return "kubelet-" + n.Name }

// startKubelet gives the kubelet a certificate with the node's present addresses, a configuration, and starts it.
func (n *Node) startKubelet() error {
	pki := n.cluster.pki
	file := kubeletFile(n)
	kubeconfig, err := pki.kubeconfig(file, n.cluster.control.url(), subject{
		name: "system:node:" + n.Name, groups: []string{"system:nodes"},
		hosts: []string{n.Name}, addresses: []netip.Addr{n.V4, n.V6},
	})
	if err != nil {
		return err
	}
	cgroup, err := n.Runtime.MakeCgroup()
	if err != nil {
		return err
	}
	type object map[string]any
	config, err := json.Marshal(object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true},
			"x509": object{"clientCAFile": pki.caFile()},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   pki.certFile(file), "tlsPrivateKeyFile": pki.keyFile(file),
		"clusterDNS": dnsAddresses(), "clusterDomain": "cluster.local",
		"resolvConf":               "", // nobody answers but the cluster's DNS
		"containerRuntimeEndpoint": "unix://" + n.Runtime.Socket(),
		"cgroupDriver":             "cgroupfs", "cgroupRoot": cgroup, "enforceNodeAllocatable": []string{},
		"failSwapOn": false,
		// The disk is the machine's, and others fill it.
		"evictionHard":                object{"imagefs.available": "0%", "nodefs.available": "0%"},
		"imageGCHighThresholdPercent": 100,
	})
	if err != nil {
		return err
	}
	configFile := filepath.Join(n.Dir, "kubelet.json")
	if err := os.WriteFile(configFile, config, 0o644); err != nil {
		return err
	}
	program, err := n.cluster.program("kubelet")
	if err != nil {
		return err
	}
	n.kubelet, err = n.Runtime.Launch("kubelet", program, "--config="+configFile, "--kubeconfig="+kubeconfig,
		"--hostname-override="+n.Name, fmt.Sprintf("--node-ip=%s,%s", n.V4, n.V6))
	return err
}

// startProxy starts kube-proxy in a mode.
func (n *Node) startProxy(mode string) error {
	user := subject{name: "system:kube-proxy"}
	kubeconfig, err := n.cluster.pki.kubeconfig("proxy-"+n.Name, n.cluster.control.url(), user)
	if err != nil {
		return err
	}
	type object map[string]any
	content, err := json.Marshal(object{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             mode,
		"clientConnection": object{"kubeconfig": kubeconfig},
		"clusterCIDR":      podRanges,
		"hostnameOverride": n.Name,
		// The machine's, of which a namespace has no own.
		"conntrack": object{"maxPerCore": 0, "min": 0},
	})
	if err != nil {
		return err
	}
	config := filepath.Join(n.Dir, "proxy.json")
	if err := os.WriteFile(config, content, 0o644); err != nil {
		return err
	}
	program, err := n.cluster.program("kube-proxy")
	if err != nil {
		return err
	}
	n.proxy, err = n.Runtime.Launch("kube-proxy", program, "--config="+config)
	return err
}

// SetProxy ends kube-proxy on all nodes and starts it in another mode, in which it removes what it left in the first.
func (c *Cluster) SetProxy(ctx context.Context, mode string) error {
	if mode == c.Options.Proxy {
		return nil
	}
	c.Options.Proxy = mode
	return each(c.Nodes, func(n *Node) error {
		if err := n.proxy.End(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		return n.startProxy(mode)
	})
}

// PowerOff ends the node as a power failure does.
func (n *Node) PowerOff() error { return n.Runtime.PowerOff() }

// MoveNode is a power failure of a node, after which it boots with other addresses on the underlay.
func (c *Cluster) MoveNode(ctx context.Context, n *Node, v4, v6 netip.Addr) error {
	if err := n.PowerOff(); err != nil {
		return err
	}
	n.V4, n.V6 = v4, v6
	if err := n.Reboot(); err != nil {
		return err
	}
	if err := n.Boot(ctx); err != nil {
		return err
	}
	return n.WaitReady(ctx)
}

// DeleteNode is a power failure of a node for good, of which the API server is told.
func (c *Cluster) DeleteNode(ctx context.Context, n *Node) error {
	if err := n.PowerOff(); err != nil {
		return err
	}
	c.Nodes = slices.DeleteFunc(c.Nodes, func(other *Node) bool { return other == n })
	_, err := c.Kubectl(ctx, "delete", "node", n.Name)
	return err
}

// PowerOff ends all nodes, before the end of the lab, so that the end of their containerds is waited for.
func (c *Cluster) PowerOff() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.PowerOff())
	}
	return errors.Join(errs...)
}
