package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// Ranges of the cluster. Every node gets a /24 and a /64 of the pods'.
const (
	podRanges     = "10.244.0.0/16,fd00:10:244::/48"
	serviceRanges = "10.96.0.0/16,fd00:10:96::/112"
)

// dnsAddresses are those of the service of the cluster's DNS, which kubelets write into pods.
func dnsAddresses() []string { return []string{"10.96.0.10", "fd00:10:96::a"} }

// startWait bounds the start of a part of the cluster.
const startWait = 90 * time.Second

// A control plane is etcd and what stands around it, on one host.
type controlPlane struct {
	cluster   *Cluster
	host      *lab.Host
	apiserver *lab.Proc
	managers  []*lab.Proc // who works through the API server: the controller manager and the scheduler
}

// url is where the API server is asked.
func (p *controlPlane) url() string { return fmt.Sprintf("https://%s:6443", p.host.V4) }

// start starts etcd, the API server, the controller manager and the scheduler.
func (p *controlPlane) start(ctx context.Context) error {
	pki := p.cluster.pki
	err := pki.issue("apiserver", subject{
		name: "kube-apiserver", groups: []string{"system:masters"}, // of those it calls: kubelets, etcd
		hosts: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
		addresses: []netip.Addr{p.host.V4, p.host.V6, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.96.0.1"),
			netip.MustParseAddr("fd00:10:96::1")},
	})
	if err != nil {
		return err
	}
	if err := pki.issue("serviceaccounts", subject{name: "service accounts"}); err != nil {
		return err
	}
	cert, key := pki.certFile("apiserver"), pki.keyFile("apiserver")
	_, err = p.cluster.Lab.Start(p.host.NS, "etcd", "etcd",
		"--data-dir="+filepath.Join(p.cluster.Lab.Dir, "etcd"),
		"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--cert-file="+cert, "--key-file="+key, "--client-cert-auth", "--trusted-ca-file="+pki.caFile())
	if err != nil {
		return err
	}
	return p.startServers(ctx)
}

// startServers starts all but etcd.
func (p *controlPlane) startServers(ctx context.Context) error {
	if err := p.startAPIServer(ctx); err != nil {
		return err
	}
	pki := p.cluster.pki
	p.managers = nil
	for name, flags := range map[string][]string{
		"kube-controller-manager": {
			"--allocate-node-cidrs", "--cluster-cidr=" + podRanges, "--node-cidr-mask-size-ipv4=24",
			"--node-cidr-mask-size-ipv6=64", "--service-cluster-ip-range=" + serviceRanges,
			"--use-service-account-credentials", "--root-ca-file=" + pki.caFile(),
			"--service-account-private-key-file=" + pki.keyFile("serviceaccounts"),
		},
		"kube-scheduler": nil,
	} {
		config, err := pki.kubeconfig(name, p.url(), subject{name: "system:" + name})
		if err != nil {
			return err
		}
		program, err := p.cluster.program(name)
		if err != nil {
			return err
		}
		args := append([]string{program, "--kubeconfig=" + config, "--authentication-kubeconfig=" + config,
			"--authorization-kubeconfig=" + config, "--leader-elect=false"}, flags...)
		manager, err := p.cluster.Lab.Start(p.host.NS, name, args...)
		if err != nil {
			return err
		}
		p.managers = append(p.managers, manager)
	}
	return nil
}

// stopServers ends all but etcd as a crash does.
func (p *controlPlane) stopServers() error {
	err := p.apiserver.Kill()
	for _, manager := range p.managers {
		err = errors.Join(err, manager.Kill())
	}
	return err
}

// startAPIServer starts it, and waits until it is ready.
func (p *controlPlane) startAPIServer(ctx context.Context) error {
	pki := p.cluster.pki
	program, err := p.cluster.program("kube-apiserver")
	if err != nil {
		return err
	}
	cert, key := pki.certFile("apiserver"), pki.keyFile("apiserver")
	p.apiserver, err = p.cluster.Lab.Start(p.host.NS, "kube-apiserver", program,
		"--advertise-address="+p.host.V4.String(), "--secure-port=6443",
		"--tls-cert-file="+cert, "--tls-private-key-file="+key, "--client-ca-file="+pki.caFile(),
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile="+pki.caFile(), "--etcd-certfile="+cert,
		"--etcd-keyfile="+key,
		"--kubelet-certificate-authority="+pki.caFile(), "--kubelet-client-certificate="+cert, "--kubelet-client-key="+key,
		"--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--service-cluster-ip-range="+serviceRanges,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+pki.certFile("serviceaccounts"),
		"--service-account-signing-key-file="+pki.keyFile("serviceaccounts"))
	if err != nil {
		return err
	}
	err = eventually(ctx, startWait, "the API server", func() error {
		select {
		case <-p.apiserver.Done():
			return fmt.Errorf("it ended")
		default:
		}
		answer, err := p.cluster.Kubectl(ctx, "get", "--raw", "/readyz")
		if err == nil && strings.TrimSpace(answer) != "ok" {
			err = fmt.Errorf("/readyz: %s", answer)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; its log:\n%s", err, p.apiserver.LogTail())
	}
	return nil
}

// eventually asks again until there is no error.
func eventually(ctx context.Context, wait time.Duration, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s, in %v: %w", what, wait, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
