package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
)

// podDevice is the name of a pod's device, as Kubernetes' runtimes choose it.
const podDevice = "eth0"

// A Pod is a namespace attached to a node by the CNI plugin.
type Pod struct {
	Name   string
	ID     string // container id, 64 hexadecimal digits
	Node   *Node
	NS     *NS
	V4, V6 netip.Addr // as the plugin's result says; the zero Addr when it gave none of that family
	Result []byte     // the plugin's result, JSON
}

// PodOptions are optional.
type PodOptions struct {
	Mode string         // routed or bridge; empty: the plugin's default
	Conf map[string]any // further keys of the plugin's configuration
}

// AddPod makes a namespace and attaches it by executing warren-cni with the command ADD.
func (n *Node) AddPod(ctx context.Context, name string, o PodOptions) (*Pod, error) {
	ns, err := n.lab.AddNS(n.Name + "-" + name)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	p := &Pod{Name: name, ID: hex.EncodeToString(id), Node: n, NS: ns}
	if p.Result, err = p.cni(ctx, "ADD", o); err != nil {
		return nil, errors.Join(err, n.lab.RemoveNS(ns))
	}
	if err := p.readResult(); err != nil {
		return nil, errors.Join(err, n.lab.RemoveNS(ns))
	}
	return p, nil
}

// Delete detaches the pod with the command DEL and removes its namespace.
func (p *Pod) Delete(ctx context.Context, o PodOptions) error {
	_, err := p.cni(ctx, "DEL", o)
	return errors.Join(err, p.Node.lab.RemoveNS(p.NS))
}

// Detach executes the command DEL alone; a runtime may do so several times.
func (p *Pod) Detach(ctx context.Context, o PodOptions) error {
	_, err := p.cni(ctx, "DEL", o)
	return err
}

// Check executes the command CHECK, which compares the pod with the result of ADD.
func (p *Pod) Check(ctx context.Context, o PodOptions) error {
	conf := map[string]any{"prevResult": json.RawMessage(p.Result)}
	maps.Copy(conf, o.Conf)
	_, err := p.cni(ctx, "CHECK", PodOptions{Mode: o.Mode, Conf: conf})
	return err
}

// cni executes the plugin as a container runtime does: parameters in the environment, configuration on standard input
// (CNI specification 1.1.0, section 2).
func (p *Pod) cni(ctx context.Context, command string, o PodOptions) ([]byte, error) {
	plugin, err := p.Node.lab.Binary("warren-cni")
	if err != nil {
		return nil, err
	}
	conf := map[string]any{"cniVersion": "1.1.0", "name": "warren", "type": "warren-cni",
		"runDir": p.Node.RunDir, "stateDir": p.Node.StateDir}
	if o.Mode != "" {
		conf["mode"] = o.Mode
	}
	for k, v := range o.Conf {
		conf[k] = v
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("configuration of the CNI plugin: %w", err)
	}
	out, err := p.Node.NS.runWith(ctx, runInput{
		stdin: stdin,
		env: []string{
			"CNI_COMMAND=" + command,
			"CNI_CONTAINERID=" + p.ID,
			"CNI_NETNS=" + p.NS.Path(),
			"CNI_IFNAME=" + podDevice,
			"CNI_PATH=" + filepath.Dir(plugin),
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=" + p.Name +
				";K8S_POD_INFRA_CONTAINER_ID=" + p.ID,
		},
	}, plugin)
	if err != nil {
		return nil, fmt.Errorf("CNI %s of pod %s on node %s: %w", command, p.Name, p.Node.Name, err)
	}
	return []byte(out), nil
}

func (p *Pod) readResult() error {
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(p.Result, &result); err != nil {
		return fmt.Errorf("result of the CNI plugin for pod %s: %w: %s", p.Name, err, p.Result)
	}
	for _, ip := range result.IPs {
		if a := ip.Address.Addr(); a.Is4() {
			p.V4 = a
		} else {
			p.V6 = a
		}
	}
	if !p.V4.IsValid() && !p.V6.IsValid() {
		return fmt.Errorf("the CNI plugin gave pod %s no address: %s", p.Name, p.Result)
	}
	return nil
}

// Address is the pod's address of a family, 4 or 6.
func (p *Pod) Address(family int) netip.Addr {
	if family == 4 {
		return p.V4
	}
	return p.V6
}

// Address is the node's underlay address of a family, 4 or 6.
func (n *Node) Address(family int) netip.Addr {
	if family == 4 {
		return n.V4
	}
	return n.V6
}

// MTU is the MTU of the pod's device, in bytes.
func (p *Pod) MTU() (int, error) { return p.NS.LinkMTU(podDevice) }
