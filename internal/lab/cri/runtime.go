package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/warren-net/warren/internal/lab"
)

// readyWait bounds the start of the runtime, and other things that should be done soon.
const readyWait = 30 * time.Second

// Options say what a runtime is to be like.
type Options struct {
	Plugins string  // directory of CNI's own plugins
	Mode    string  // of attachment; with Machine, `warren cni install` is left to who runs the node
	Images  *Images // loaded at the first start

	// Machine gives the node directories of its own where others expect them, as a kubelet and what it runs do: CNI's
	// are /opt/cni/bin and /etc/cni/net.d.
	Machine bool
}

// A Runtime is containerd on a node. RunPod and the methods of pods may be called concurrently, the others by one
// goroutine.
type Runtime struct {
	Node *lab.Node

	lab        *lab.Lab
	images     *Images
	machine    bool
	init       *lab.Proc // holds the namespaces; it ends with all that runs in them
	initPid    int
	containerd *Process
	conn       *grpc.ClientConn
	client     criapi.RuntimeServiceClient
}

// Install prepares a runtime on a node, where Warren runs; Boot and Start start it. It ends with the lab.
func Install(ctx context.Context, l *lab.Lab, n *lab.Node, o Options) (*Runtime, error) {
	r := &Runtime{Node: n, lab: l, images: o.Images, machine: o.Machine}
	l.OnClose(r.removeCgroups)
	if err := errors.Join(sweepCgroups(), r.writeFiles(ctx, o)); err != nil {
		return nil, fmt.Errorf("runtime of node %s: %w", n.Name, err)
	}
	return r, nil
}

// Boot makes the namespaces that a machine of its own would be: of mounts, with an empty /run, and of processes. The
// network's is the node's.
func (r *Runtime) Boot(ctx context.Context) error {
	mounts := "mount -t tmpfs -o mode=755 run /run"
	if r.machine {
		more, err := r.mountMachine()
		if err != nil {
			return fmt.Errorf("directories of node %s: %w", r.Node.Name, err)
		}
		mounts += " && " + more
	}
	p, err := r.lab.Start(r.Node.NS, "init-"+r.Node.Name, "unshare", "--mount", "--propagation", "private",
		"--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", mounts+` && exec "$0"`, r.images.init)
	if err != nil {
		return err
	}
	r.init = p
	return eventually(ctx, "start of node "+r.Node.Name, func() error {
		pid, err := onlyChild(p.Pid())
		if err != nil {
			return errors.Join(err, errors.New(p.LogTail()))
		}
		r.initPid = pid
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe != r.images.init {
			return fmt.Errorf("process %d is %q, not yet %s", pid, exe, r.images.init)
		}
		return nil
	})
}

// Start starts containerd and waits until it can run pods: the daemon of Warren has to run, but for a node that is a
// machine of its own, whose list of CNI's comes later.
func (r *Runtime) Start(ctx context.Context) error {
	p, err := r.Launch("containerd", "containerd", "--config", r.configFile())
	if err != nil {
		return err
	}
	r.containerd = p
	if r.conn == nil {
		r.conn, err = grpc.NewClient("unix://"+r.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("client of containerd on node %s: %w", r.Node.Name, err)
		}
		r.client = criapi.NewRuntimeServiceClient(r.conn)
	}
	err = eventually(ctx, "containerd on node "+r.Node.Name, func() error { return r.ready(ctx) })
	if err != nil {
		return fmt.Errorf("%w; its log:\n%s", err, p.LogTail())
	}
	return r.loadImages(ctx)
}

func (r *Runtime) ready(ctx context.Context) error {
	r.conn.ResetConnectBackoff()
	status, err := r.client.Status(ctx, &criapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		if !c.GetStatus() && (!r.machine || c.GetType() != criapi.NetworkReady) {
			return fmt.Errorf("%s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
	return nil
}

// loadImages puts the images into the namespace of containerd in which its CRI looks for them.
func (r *Runtime) loadImages(ctx context.Context) error {
	for _, archive := range r.images.archives {
		_, err := r.Node.NS.Run(ctx, "ctr", "--address", r.socket(), "--namespace", "k8s.io", "images", "import", archive)
		if err != nil {
			return err
		}
	}
	return nil
}

// Kill ends containerd as a crash would. The pods go on.
func (r *Runtime) Kill(ctx context.Context) error {
	return r.containerd.End(ctx, syscall.SIGKILL)
}

// PowerOff ends everything that the runtime has started at once, as a power failure would. What the node's disk holds
// stays; mounts, sandboxes' namespaces and /run are gone. A second call does nothing.
func (r *Runtime) PowerOff() error {
	if r.init == nil {
		return nil // never booted
	}
	if err := r.init.Kill(); err != nil { // and with it, by --kill-child, all of its process namespace
		return err
	}
	// The first process of a namespace is the last one to end (pid_namespaces(7)); dead, it has no program.
	err := eventually(context.Background(), "end of node "+r.Node.Name, func() error {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.initPid)); err == nil && exe == r.images.init {
			return fmt.Errorf("process %d (%s) is still there", r.initPid, exe)
		}
		return nil
	})
	return errors.Join(err, r.removeCgroups())
}

// Mounts are the mount points that are the node's alone and not the runtime's: those of sandboxes and containers.
func (r *Runtime) Mounts() ([]string, error) {
	mine, err := mountPoints("self")
	if err != nil {
		return nil, err
	}
	theirs, err := mountPoints(strconv.Itoa(r.initPid))
	if err != nil {
		return nil, err
	}
	var only []string
	for point := range theirs {
		if !mine[point] && point != "/run" {
			only = append(only, point)
		}
	}
	return only, nil
}

// mountPoints reads the fifth field of each line (proc(5)).
func mountPoints(pid string) (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return nil, err
	}
	points := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[fields[4]] = true
		}
	}
	return points, nil
}

// onlyChild finds the child of a process that has one.
func onlyChild(parent int) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		// The program's name may hold blanks: count from behind it. State and parent follow.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			return strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		}
	}
	return 0, fmt.Errorf("process %d has no child", parent)
}

// eventually asks again until there is no error.
func eventually(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
