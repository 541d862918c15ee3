package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
)

// Options say what a cluster is to be like.
type Options struct {
	BinDir   string // of Warren's programs, with those of Kubernetes in kube and CNI's own in cni
	Manifest string // path of deploy/kubernetes/warren.yaml
	Mode     string // how Warren attaches pods
	Proxy    string // mode of kube-proxy
}

// A Cluster is a Kubernetes with Warren as its pod network.
type Cluster struct {
	Lab     *lab.Lab
	Nodes   []*Node
	Options Options

	pki      *authority
	control  *controlPlane
	images   *cri.Images
	admin    string // kubeconfig
	manifest string // of Warren
}

// Names of images that are assembled here.
const (
	AgnhostImage = "warren.test/agnhost:1"
	corednsImage = "warren.test/coredns:1"
)

// New starts a control plane in a lab, and makes Warren its pod network. The lab's end is the cluster's.
func New(ctx context.Context, l *lab.Lab, o Options) (*Cluster, error) {
	c := &Cluster{Lab: l, Options: o}
	err := c.readManifest()
	if err != nil {
		return nil, err
	}
	if c.pki, err = newAuthority(filepath.Join(l.Dir, "pki")); err != nil {
		return nil, err
	}
	c.control = &controlPlane{cluster: c}
	if c.control.host, err = l.AddHost("control", 0); err != nil {
		return nil, err
	}
	c.admin, err = c.pki.kubeconfig("admin", c.control.url(), subject{name: "admin", groups: []string{"system:masters"}})
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() { started <- c.control.start(ctx) }()
	err = c.assembleImages(ctx)
	if err = errors.Join(err, <-started); err != nil {
		return nil, err
	}
	return c, c.Apply(ctx, c.manifest)
}

// program is the path of a program of Kubernetes'.
func (c *Cluster) program(name string) (string, error) {
	path := filepath.Join(c.Options.BinDir, "kube", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: `make kube` builds it", err)
	}
	return path, nil
}

func (c *Cluster) assembleImages(ctx context.Context) error {
	var err error
	if c.images, err = cri.BuildImages(ctx, c.Lab.Dir); err != nil {
		return err
	}
	for name, program := range map[string]string{AgnhostImage: "agnhost", corednsImage: "coredns"} {
		path, err := c.program(program)
		if err != nil {
			return err
		}
		image := cri.Image{Name: name, Files: map[string]string{"/" + program: path}, Entrypoint: []string{"/" + program}}
		if err := c.images.Add(filepath.Join(c.Lab.Dir, program+".tar"), image); err != nil {
			return err
		}
	}
	return c.addWarrenImages()
}

// Kubectl asks the cluster as an administrator does, and returns the answer.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlAs(ctx, Client{"--kubeconfig=" + c.admin}, args...)
}

// A Client is how kubectl shows who it is: flags.
type Client []string

// KubectlAs asks the cluster as somebody else does.
func (c *Cluster) KubectlAs(ctx context.Context, as Client, args ...string) (string, error) {
	kubectl, err := c.program("kubectl")
	if err != nil {
		return "", err
	}
	flags := append(Client{kubectl, "--cache-dir=" + filepath.Join(c.Lab.Dir, "kubectl")}, as...)
	return c.control.host.NS.Run(ctx, append(flags, args...)...)
}

// Get reads objects of the API into a value.
func (c *Cluster) Get(ctx context.Context, into any, args ...string) error {
	out, err := c.Kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// Apply is `kubectl apply` of a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	f, err := os.CreateTemp(c.Lab.Dir, "manifest-*.yaml")
	if err != nil {
		return err
	}
	_, err = f.WriteString(manifest)
	if err = errors.Join(err, f.Close()); err == nil {
		_, err = c.Kubectl(ctx, "apply", "-f", f.Name())
	}
	return err
}

// StopAPIServer ends the API server as a crash would, and with it the controller manager and the scheduler, which end
// by themselves where they are several and cannot hold on to their lease.
func (c *Cluster) StopAPIServer() error { return c.control.stopServers() }

// StartAPIServer starts again what StopAPIServer ended, and waits until the API server is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error { return c.control.startServers(ctx) }

// each does something on some nodes at once.
func each(nodes []*Node, do func(n *Node) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = do(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
