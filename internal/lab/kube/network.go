package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/warren-net/warren/internal/lab/cri"
)

// namespace is where the manifest puts Warren, in a DaemonSet of the same name as its container.
const namespace, daemonSet = "warren-system", "daemonset/warren"

// imageLine matches the names of images in the manifest.
var imageLine = regexp.MustCompile(`(?m)^ *image: (\S+)$`)

// readManifest reads deploy/kubernetes/warren.yaml, and changes nothing but the attachment's mode, if it is another.
func (c *Cluster) readManifest() error {
	b, err := os.ReadFile(c.Options.Manifest)
	if err != nil {
		return err
	}
	c.manifest = string(b)
	const mode = "--mode=routed"
	if !strings.Contains(c.manifest, mode) {
		return fmt.Errorf("%s has no flag %s to be changed to another mode", c.Options.Manifest, mode)
	}
	c.manifest = strings.ReplaceAll(c.manifest, mode, "--mode="+c.Options.Mode)
	return nil
}

// warrenImages are the images that the manifest names, and the one that they are upgraded to. As Containerfile has it,
// there are two programs in it and nothing else.
func (c *Cluster) warrenImages() ([]string, error) {
	found := imageLine.FindAllStringSubmatch(c.manifest, -1)
	if len(found) == 0 {
		return nil, errors.New("the manifest names no image")
	}
	for _, match := range found {
		if match[1] != found[0][1] {
			return nil, fmt.Errorf("the manifest names the images %s and %s", found[0][1], match[1])
		}
	}
	name := found[0][1]
	return []string{name, name[:strings.LastIndexByte(name, ':')] + ":next"}, nil
}

func (c *Cluster) addWarrenImages() error {
	names, err := c.warrenImages()
	if err != nil {
		return err
	}
	files := make(map[string]string)
	for _, program := range []string{"warren", "warren-cni"} {
		if files["/"+program], err = c.Lab.Binary(program); err != nil {
			return err
		}
	}
	for i, name := range names {
		image := cri.Image{Name: name, Files: files, Entrypoint: []string{"/warren"}}
		if err := c.images.Add(filepath.Join(c.Lab.Dir, fmt.Sprintf("warren-%d.tar", i)), image); err != nil {
			return err
		}
	}
	return nil
}

// waitNetwork waits until Warren is ready on all nodes, in the version that was asked for last.
func (c *Cluster) waitNetwork(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "--namespace="+namespace, "rollout", "status", daemonSet, "--timeout="+startWait.String())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, c.Logs())
	}
	return nil
}

// Logs are what the containers of Warren have said last on each node, as the nodes' disks have it: also without an API
// server.
func (c *Cluster) Logs() string {
	const keep = 4 << 10
	var all strings.Builder
	for _, n := range c.Nodes {
		files, _ := filepath.Glob(n.Runtime.Path("/var/log/pods/" + namespace + "_*/*/*.log"))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				b = []byte(err.Error())
			}
			fmt.Fprintf(&all, "%s of node %s:\n%s\n", file, n.Name, b[max(0, len(b)-keep):])
		}
	}
	return all.String()
}

// RestartWarren has the DaemonSet restart Warren, on one node after the other.
func (c *Cluster) RestartWarren(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, "--namespace="+namespace, "rollout", "restart", daemonSet); err != nil {
		return err
	}
	return c.waitNetwork(ctx)
}

// UpgradeWarren has the DaemonSet put another image in the place of Warren's.
func (c *Cluster) UpgradeWarren(ctx context.Context) error {
	names, err := c.warrenImages()
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "--namespace="+namespace, "set", "image", daemonSet, "*="+names[1]); err != nil {
		return err
	}
	return c.waitNetwork(ctx)
}

// KillWarren ends the daemon on a node as a crash does. The kubelet starts another one, also without an API server.
func (c *Cluster) KillWarren(ctx context.Context, n *Node) error {
	return n.Runtime.KillContainer(ctx, namespace, "warren")
}

// PodCIDRs are those that the cluster has given to a node, IPv4 and IPv6.
func (c *Cluster) PodCIDRs(ctx context.Context, n *Node) ([]netip.Prefix, error) {
	if n.podCIDRs != nil {
		return n.podCIDRs, nil // for good
	}
	err := eventually(ctx, startWait, "pod CIDRs of node "+n.Name, func() error {
		var object struct {
			Spec struct{ PodCIDRs []netip.Prefix }
		}
		if err := c.Get(ctx, &object, "node", n.Name); err != nil {
			return err
		}
		cidrs := object.Spec.PodCIDRs
		if len(cidrs) != 2 || !cidrs[0].Addr().Is4() || !cidrs[1].Addr().Is6() {
			return fmt.Errorf("it has %v, and should have one of each family", cidrs)
		}
		n.podCIDRs = cidrs
		return nil
	})
	return n.podCIDRs, err
}

// Warren asks the daemon on a node.
func (c *Cluster) Warren(ctx context.Context, n *Node, args ...string) (string, error) {
	warren, err := c.Lab.Binary("warren")
	if err != nil {
		return "", err
	}
	socket := n.Runtime.Path("/run/warren/warren.sock")
	return n.NS.Run(ctx, append(append([]string{warren}, args...), "--socket", socket)...)
}
