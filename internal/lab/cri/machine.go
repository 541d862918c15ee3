package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/warren-net/warren/internal/lab"
)

// A node that is a machine of its own (Options.Machine) has, beside its /run, directories that are copies of the
// machine's: what it writes there stays in Node.Dir, and is there again after a reboot.
func ownDirs() []string { return []string{"/etc", "/opt", "/var"} }

// emptyDirs are those below ownDirs of which the node sees nothing that the machine may have there.
func emptyDirs() []string {
	return []string{
		"/etc/cni/net.d", "/opt/cni/bin", "/etc/kubernetes", "/etc/warren",
		"/var/lib/cni", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/warren",
		"/var/log/containers", "/var/log/pods",
	}
}

// ownSysctls are settings of the whole machine that a kubelet changes. In the node's mount namespace they are files, so
// that it changes these.
func ownSysctls() []string {
	return []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}
}

func (r *Runtime) own(path string) string { return filepath.Join(r.in("own"), path) }
func (r *Runtime) sysctl(name string) string {
	return filepath.Join(r.in("sysctl"), filepath.Base(name))
}

// makeMachine prepares what mountMachine mounts.
func (r *Runtime) makeMachine() error {
	for _, dir := range ownDirs() {
		if strings.HasPrefix(r.Node.Dir, dir+"/") {
			return fmt.Errorf("the lab is in %s, below %s, of which the node has a copy: set TMPDIR to a directory elsewhere",
				r.Node.Dir, dir)
		}
	}
	for _, dir := range emptyDirs() {
		if err := os.MkdirAll(r.own(dir), 0o755); err != nil {
			return err
		}
		// overlayfs looks no further down where the upper directory is opaque.
		if err := unix.Setxattr(r.own(dir), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("hiding the machine's %s: %w", dir, err)
		}
	}
	if err := os.MkdirAll(r.in("sysctl"), 0o755); err != nil {
		return err
	}
	for _, name := range ownSysctls() {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err == nil {
			err = os.WriteFile(r.sysctl(name), value, 0o644)
		}
		if err != nil {
			return fmt.Errorf("a copy of the sysctl %s: %w", name, err)
		}
	}
	return nil
}

// mountMachine are the shell commands that mount it. Who runs pods may ask for mounts that pass in and out, which takes
// a tree that is shared; it is so within the node only.
func (r *Runtime) mountMachine() (string, error) {
	var commands []string
	for _, dir := range ownDirs() {
		work := r.own("." + filepath.Base(dir))
		if err := errors.Join(os.MkdirAll(work, 0o755), os.MkdirAll(r.own(dir), 0o755)); err != nil {
			return "", err
		}
		commands = append(commands, fmt.Sprintf("mount -t overlay -o lowerdir=%[1]s,upperdir=%[2]s,workdir=%[3]s own %[1]s",
			dir, r.own(dir), work))
	}
	for _, name := range ownSysctls() {
		commands = append(commands, fmt.Sprintf("mount --bind %s /proc/sys/%s", r.sysctl(name), name))
	}
	return strings.Join(append(commands, "mount --make-rshared /"), " && "), nil
}

// inside is a command line that runs another within the node: its mounts and its processes.
func (r *Runtime) inside(args ...string) []string {
	proc := fmt.Sprintf("/proc/%d/ns/", r.initPid)
	return append([]string{"nsenter", "--mount=" + proc + "mnt", "--pid=" + proc + "pid", "--"}, args...)
}

// Run runs a command to its end within the node, which has booted.
func (r *Runtime) Run(ctx context.Context, args ...string) (string, error) {
	return r.Node.NS.Run(ctx, r.inside(args...)...)
}

// Launch starts a program within the node. It ends with the node.
func (r *Runtime) Launch(name string, args ...string) (*Process, error) {
	p, err := r.lab.Start(r.Node.NS, name+"-"+r.Node.Name, r.inside(args...)...)
	if err != nil {
		return nil, err
	}
	return &Process{Proc: p}, nil
}

// Path is where a file of the node's is found from without, while the node runs.
func (r *Runtime) Path(file string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", r.initPid), file)
}

// A Process runs within a node.
type Process struct{ *lab.Proc }

// End sends the program a signal that ends it, and waits until it is gone.
func (p *Process) End(ctx context.Context, signal syscall.Signal) error {
	pid, err := onlyChild(p.Pid()) // of nsenter, which has to fork to enter a process namespace
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("sending %v to %s: %w", signal, p.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if err := p.Wait(ctx); ctx.Err() != nil {
		return err
	}
	return nil
}

// Netns is the file, as seen from without, of the network namespace of a pod that a kubelet started. It is that of its
// newest sandbox that runs.
func (r *Runtime) Netns(ctx context.Context, namespace, pod string) (string, error) {
	list, err := r.client.ListPodSandbox(ctx, &criapi.ListPodSandboxRequest{Filter: &criapi.PodSandboxFilter{
		State:         &criapi.PodSandboxStateValue{State: criapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{"io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.name": pod},
	}})
	if err != nil {
		return "", fmt.Errorf("sandboxes of node %s: %w", r.Node.Name, err)
	}
	if len(list.GetItems()) == 0 {
		return "", fmt.Errorf("node %s has no sandbox of pod %s/%s", r.Node.Name, namespace, pod)
	}
	newest := slices.MaxFunc(list.GetItems(), func(a, b *criapi.PodSandbox) int {
		return cmp.Compare(a.GetCreatedAt(), b.GetCreatedAt())
	})
	status, err := r.client.PodSandboxStatus(ctx,
		&criapi.PodSandboxStatusRequest{PodSandboxId: newest.GetId(), Verbose: true})
	if err != nil {
		return "", fmt.Errorf("sandbox of pod %s/%s: %w", namespace, pod, err)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(status.GetInfo()["info"]), &info); err != nil {
		return "", fmt.Errorf("what containerd says of the sandbox of pod %s/%s: %w", namespace, pod, err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			// /var/run is a link, which would lead out of the node.
			return r.Path(strings.Replace(ns.Path, "/var/run/", "/run/", 1)), nil
		}
	}
	return "", fmt.Errorf("pod %s/%s has no network namespace of its own", namespace, pod)
}

// KillContainer ends a container of a pod that a kubelet started, as a crash of its program would.
func (r *Runtime) KillContainer(ctx context.Context, namespace, container string) error {
	list, err := r.client.ListContainers(ctx, &criapi.ListContainersRequest{Filter: &criapi.ContainerFilter{
		State: &criapi.ContainerStateValue{State: criapi.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{
			"io.kubernetes.pod.namespace": namespace, "io.kubernetes.container.name": container,
		},
	}})
	if err != nil {
		return fmt.Errorf("containers of node %s: %w", r.Node.Name, err)
	}
	if len(list.GetContainers()) != 1 {
		return fmt.Errorf("node %s runs %d containers %s of %s, want one", r.Node.Name, len(list.GetContainers()), container,
			namespace)
	}
	_, err = r.client.StopContainer(ctx, &criapi.StopContainerRequest{ContainerId: list.GetContainers()[0].GetId()})
	if err != nil {
		return fmt.Errorf("killing container %s of node %s: %w", container, r.Node.Name, err)
	}
	return nil
}
