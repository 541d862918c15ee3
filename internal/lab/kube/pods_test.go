//go:build cluster

package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
	"github.com/warren-net/warren/internal/lab/kube"
)

// port is where the pods' server listens, TCP and UDP, both families.
const port = 8080

// readyWait bounds the start of what a manifest asks for.
const readyWait = 2 * time.Minute

// A pod that the API server knows.
type pod struct {
	name   string
	node   *kube.Node
	v4, v6 netip.Addr

	ns *lab.NS // see within
}

func (p *pod) address(family int) netip.Addr {
	if family == 4 {
		return p.v4
	}
	return p.v6
}

// A workload is a Deployment of pods that say who asks them, and ask others in turn.
type workload struct {
	name     string
	replicas int
	node     string // where all pods run; empty: spread over the nodes
	hostPort int    // of TCP and UDP; 0: none
}

// manifest is the Deployment, in JSON, which is YAML.
func (w workload) manifest() string {
	type object map[string]any
	ports := []object{{"name": "tcp", "containerPort": port, "protocol": "TCP"},
		{"name": "udp", "containerPort": port, "protocol": "UDP"}}
	if w.hostPort != 0 {
		for _, p := range ports {
			p["hostPort"] = w.hostPort
		}
	}
	probe := object{"httpGet": object{"path": "/healthz", "port": port}, "periodSeconds": 1, "timeoutSeconds": 5}
	labels := object{"app": w.name}
	spec := object{
		"terminationGracePeriodSeconds": 1,
		"containers": []object{{
			"name": "server", "image": kube.AgnhostImage, "imagePullPolicy": "Never", "ports": ports,
			"args":           []string{"netexec", "--http-port=" + strconv.Itoa(port), "--udp-port=" + strconv.Itoa(port)},
			"readinessProbe": probe, "livenessProbe": probe,
		}},
		"topologySpreadConstraints": []object{{
			"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
			"labelSelector": object{"matchLabels": labels},
		}},
	}
	if w.node != "" {
		spec["nodeSelector"] = object{"kubernetes.io/hostname": w.node}
	}
	manifest, err := json.Marshal(object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": w.name},
		"spec": object{
			"replicas": w.replicas, "selector": object{"matchLabels": labels},
			"template": object{"metadata": object{"labels": labels}, "spec": spec},
		},
	})
	if err != nil {
		panic(err) // of text and numbers only
	}
	return string(manifest)
}

// run applies workloads, waits until all of their pods are ready, and returns these.
func (c *cluster) run(workloads ...workload) []*pod {
	c.t.Helper()
	var manifests []string
	for _, w := range workloads {
		manifests = append(manifests, w.manifest())
	}
	c.ok(c.Apply(c.ctx, strings.Join(manifests, "\n---\n")))
	var pods []*pod
	for _, w := range workloads {
		c.rolledOut("deployment/" + w.name)
		mine := c.pods(w.name)
		if len(mine) != w.replicas {
			c.t.Fatalf("deployment %s has %d pods, want %d", w.name, len(mine), w.replicas)
		}
		pods = append(pods, mine...)
	}
	return pods
}

func (c *cluster) rolledOut(what string) {
	c.t.Helper()
	if _, err := c.Kubectl(c.ctx, "rollout", "status", what, "--timeout="+readyWait.String()); err != nil {
		events, _ := c.Kubectl(c.ctx, "get", "events", "--field-selector=type!=Normal")
		c.t.Fatalf("%v\n%s", err, events)
	}
}

// pods lists the pods of a workload.
func (c *cluster) pods(app string) []*pod {
	c.t.Helper()
	pods, err := c.listPods(app)
	c.ok(err)
	return pods
}

// listPods lists the pods of a workload, and checks that each has addresses of its node's CIDRs.
func (c *cluster) listPods(app string) ([]*pod, error) {
	c.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string
				DeletionTimestamp string
			}
			Spec   struct{ NodeName string }
			Status struct{ PodIPs []struct{ IP netip.Addr } }
		}
	}
	if err := c.Get(c.ctx, &list, "pods", "--selector=app="+app); err != nil {
		return nil, err
	}
	var pods []*pod
	for _, item := range list.Items {
		if item.Metadata.DeletionTimestamp != "" {
			continue
		}
		p := &pod{name: item.Metadata.Name, node: c.node(item.Spec.NodeName)}
		for _, ip := range item.Status.PodIPs {
			if ip.IP.Is4() {
				p.v4 = ip.IP
			} else {
				p.v6 = ip.IP
			}
		}
		cidrs, err := c.PodCIDRs(c.ctx, p.node)
		if err != nil {
			return nil, err
		}
		if !cidrs[0].Contains(p.v4) || !cidrs[1].Contains(p.v6) {
			return nil, fmt.Errorf("pod %s of node %s has %v, want one of each of %v", p.name, p.node.Name, item.Status.PodIPs,
				cidrs)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

func (c *cluster) node(name string) *kube.Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("there is no node %q", name)
	return nil
}

// remove deletes workloads and what else there is with their names, and waits until their pods are gone.
func (c *cluster) remove(pods []*pod, names ...string) {
	c.t.Helper()
	for _, name := range names {
		_, err := c.Kubectl(c.ctx, "delete", "deployment,service", "--ignore-not-found", "--wait=false", name)
		c.ok(err)
	}
	for _, p := range pods {
		_, err := c.Kubectl(c.ctx, "wait", "--for=delete", "pod/"+p.name, "--timeout="+readyWait.String())
		c.ok(err)
	}
}

// ask has a pod ask, by tcp or udp, a host who is asking.
func (c *cluster) ask(from *pod, by, host string, port int) (netip.Addr, error) {
	answer, err := c.dial(from, by, host, port, "clientip")
	if err != nil {
		return netip.Addr{}, err
	}
	return source(answer)
}

// dial has a pod send a request, and returns the answer.
func (c *cluster) dial(from *pod, by, host string, port int, request string) (string, error) {
	query := url.Values{"host": {host}, "port": {strconv.Itoa(port)}, "request": {request}, "protocol": {by}}
	if by == "tcp" {
		query.Set("protocol", "http")
	}
	text, err := cri.Get(c.ctx, from.node.NS, netip.AddrPortFrom(from.v4, 8080), "/dial?"+query.Encode())
	if err != nil {
		return "", fmt.Errorf("pod %s on node %s, told to ask %s by %s: %w", from.name, from.node.Name, host, by, err)
	}
	var answer struct{ Responses, Errors []string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return "", fmt.Errorf("pod %s answers %q: %w", from.name, text, err)
	}
	if len(answer.Errors) > 0 || len(answer.Responses) != 1 {
		return "", fmt.Errorf("pod %s on node %s asking %s port %d by %s: %s", from.name, from.node.Name, host, port, by,
			text)
	}
	return answer.Responses[0], nil
}

func source(answer string) (netip.Addr, error) {
	seen, err := netip.ParseAddrPort(answer)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("answer %q: %w", answer, err)
	}
	return seen.Addr().Unmap(), nil
}

// askFrom asks a server from a namespace.
func (c *cluster) askFrom(ns *lab.NS, by string, to netip.AddrPort) (netip.Addr, error) {
	ask := func() (string, error) { return cri.Get(c.ctx, ns, to, "/clientip") }
	if by == "udp" {
		ask = func() (string, error) { return askUDP(ns, to) }
	}
	answer, err := ask()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%s asking %s by %s: %w", ns.Name, to, by, err)
	}
	return source(answer)
}

func askUDP(ns *lab.NS, to netip.AddrPort) (string, error) {
	var conn *net.UDPConn
	err := ns.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("clientip"))
	err = errors.Join(err, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	if err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// until asks again until there is no error: the cluster takes its time to do what was asked of it.
func (c *cluster) until(what string, try func() error) {
	c.t.Helper()
	c.untilWithin(time.Minute, what, try)
}

func (c *cluster) untilWithin(wait time.Duration, what string, try func() error) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	c.t.Fatalf("%s: %v", what, err)
}

// within names the network namespace of a pod, until the test is over.
func (c *cluster) within(p *pod) *lab.NS {
	c.t.Helper()
	if p.ns != nil {
		return p.ns
	}
	path, err := p.node.Runtime.Netns(c.ctx, "default", p.name)
	c.ok(err)
	ns, err := c.Lab.AdoptNS(p.name, path)
	c.ok(err)
	p.ns = ns
	c.t.Cleanup(func() {
		if err := c.Lab.ReleaseNS(ns); err != nil {
			c.t.Error(err)
		}
	})
	return ns
}
