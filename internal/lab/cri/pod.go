package cri

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/warren-net/warren/internal/lab"
)

// Port is where the server in a pod listens, TCP and UDP.
const Port = 8080

// PodOptions are optional.
type PodOptions struct {
	HostPort    int32             // leads to Port, both protocols
	Annotations map[string]string // e.g. kubernetes.io/ingress-bandwidth
}

// A Pod is a sandbox with a container in it that runs the server.
type Pod struct {
	Name      string
	ID        string // of the sandbox
	Container string // id
	V4, V6    netip.Addr

	runtime *Runtime
}

// RunPod starts a pod as a kubelet does, and waits until its server answers.
func (r *Runtime) RunPod(ctx context.Context, name string, o PodOptions) (*Pod, error) {
	config := &criapi.PodSandboxConfig{
		Metadata:     &criapi.PodSandboxMetadata{Name: name, Namespace: "demo", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: r.logDir(),
		Annotations:  o.Annotations,
		Linux:        &criapi.LinuxPodSandboxConfig{CgroupParent: "/" + r.cgroup()},
	}
	if o.HostPort != 0 {
		for _, protocol := range []criapi.Protocol{criapi.Protocol_TCP, criapi.Protocol_UDP} {
			config.PortMappings = append(config.PortMappings,
				&criapi.PortMapping{Protocol: protocol, ContainerPort: Port, HostPort: o.HostPort})
		}
	}
	p := &Pod{Name: name, runtime: r}
	sandbox, err := r.client.RunPodSandbox(ctx, &criapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, fmt.Errorf("sandbox of pod %s on node %s: %w", name, r.Node.Name, err)
	}
	p.ID = sandbox.GetPodSandboxId()
	if err := p.startServer(ctx, config); err != nil {
		return p, fmt.Errorf("pod %s on node %s: %w", name, r.Node.Name, err)
	}
	if err := p.readStatus(ctx); err != nil {
		return p, err
	}
	return p, eventually(ctx, "server in pod "+name, func() error {
		_, err := p.Get(ctx, "/identity")
		return err
	})
}

func (p *Pod) startServer(ctx context.Context, sandbox *criapi.PodSandboxConfig) error {
	created, err := p.runtime.client.CreateContainer(ctx, &criapi.CreateContainerRequest{
		PodSandboxId:  p.ID,
		SandboxConfig: sandbox,
		Config: &criapi.ContainerConfig{
			Metadata: &criapi.ContainerMetadata{Name: "server"},
			Image:    &criapi.ImageSpec{Image: serverImage},
			LogPath:  p.Name + ".log",
			Linux:    &criapi.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return fmt.Errorf("creating the container: %w", err)
	}
	p.Container = created.GetContainerId()
	_, err = p.runtime.client.StartContainer(ctx, &criapi.StartContainerRequest{ContainerId: p.Container})
	if err != nil {
		return fmt.Errorf("starting the container: %w", err)
	}
	return nil
}

// readStatus asks the runtime for the pod's addresses, and that it is ready.
func (p *Pod) readStatus(ctx context.Context) error {
	status, err := p.runtime.client.PodSandboxStatus(ctx, &criapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return fmt.Errorf("status of pod %s: %w", p.Name, err)
	}
	if state := status.GetStatus().GetState(); state != criapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod %s is %s", p.Name, state)
	}
	network := status.GetStatus().GetNetwork()
	texts := []string{network.GetIp()}
	for _, ip := range network.GetAdditionalIps() {
		texts = append(texts, ip.GetIp())
	}
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address of pod %s: %w", p.Name, err)
		}
		if a.Is4() {
			p.V4 = a
		} else {
			p.V6 = a
		}
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

// Delete stops and removes the pod, with its container.
func (p *Pod) Delete(ctx context.Context) error { return p.runtime.deleteSandbox(ctx, p.ID) }

func (r *Runtime) deleteSandbox(ctx context.Context, id string) error {
	if _, err := r.client.StopPodSandbox(ctx, &criapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stopping sandbox %s: %w", id, err)
	}
	if _, err := r.client.RemovePodSandbox(ctx, &criapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("removing sandbox %s: %w", id, err)
	}
	return nil
}

// Sandboxes lists the sandboxes that the runtime knows, with their states.
func (r *Runtime) Sandboxes(ctx context.Context) (map[string]criapi.PodSandboxState, error) {
	list, err := r.client.ListPodSandbox(ctx, &criapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("sandboxes of node %s: %w", r.Node.Name, err)
	}
	states := make(map[string]criapi.PodSandboxState)
	for _, s := range list.GetItems() {
		states[s.GetId()] = s.GetState()
	}
	return states, nil
}

// DeleteAll removes every sandbox that the runtime knows.
func (r *Runtime) DeleteAll(ctx context.Context) error {
	sandboxes, err := r.Sandboxes(ctx)
	if err != nil {
		return err
	}
	for id := range sandboxes {
		if err := r.deleteSandbox(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// SourceSeen asks a server, from within this pod, who it is that asks. By is tcp or udp, to an address with a port.
func (p *Pod) SourceSeen(ctx context.Context, by string, to netip.AddrPort) (netip.Addr, error) {
	answer, err := p.Get(ctx, fmt.Sprintf("/ask?by=%s&to=%s", by, to))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("pod %s asking %s by %s: %w", p.Name, to, by, err)
	}
	source, err := netip.ParseAddrPort(answer)
	return source.Addr().Unmap(), err
}

// Get asks the pod's own server, from its node.
func (p *Pod) Get(ctx context.Context, path string) (string, error) {
	return Get(ctx, p.runtime.Node.NS, netip.AddrPortFrom(p.V4, Port), path)
}

// Get asks a server from a namespace.
func Get(ctx context.Context, from *lab.NS, server netip.AddrPort, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+server.String()+path, nil)
	if err != nil {
		return "", err
	}
	response, err := Client(from).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", request.URL, response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// Client makes a connection of its own for each request, from a namespace.
func Client(from *lab.NS) *http.Client {
	return &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				conn, err := from.Dial(ctx, addr)
				if err != nil {
					return nil, err // and not a nil pointer in an interface
				}
				return conn, nil
			},
		},
	}
}
