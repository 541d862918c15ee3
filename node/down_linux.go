package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/node/config"
)

// remove takes away what the node made in the kernel. While pods are attached, what keeps their traffic from leaving
// in the clear stays; so does the node file, by which the CNI plugin detaches them.
func (n *Node) remove(cfg *config.Config) error {
	keep, err := keepGuards(cfg)
	if err != nil {
		n.opt.Log.Warn("the pods' records cannot be read, so the guards stay", "error", err)
	}
	return errors.Join(n.device.Remove(), hostnet.Remove(n.hostSpec(cfg, nil), keep))
}

// keepGuards reports whether pods are attached, or might be.
func keepGuards(cfg *config.Config) (bool, error) {
	names, err := podrecord.Names(cfg.StateDir)
	return err != nil || len(names) > 0, err
}

// Down removes what a killed daemon left: the device, addresses, routes, rules and nftables of Warren, its socket and
// its node file. A running one is refused (ErrRunning). It reports whether guards were left for attached pods.
func Down(cfg *config.Config) (guardsLeft bool, err error) {
	if err := checkPrivilege(); err != nil {
		return false, err
	}
	if _, err := os.Stat(cfg.RunDir); err == nil {
		lock, err := acquire(cfg.RunDir)
		if err != nil {
			return false, err
		}
		defer func() { _ = lock.release() }()
	}
	guardsLeft, recordsErr := keepGuards(cfg)
	if recordsErr != nil {
		recordsErr = fmt.Errorf("the pods' records cannot be read, so the guards stay: %w", recordsErr)
	}
	errs := []error{recordsErr, hostnet.Remove(hostnet.Spec{Device: cfg.Device}, guardsLeft)}
	files := []string{cfg.SocketPath()}
	if !guardsLeft {
		files = append(files, filepath.Join(cfg.RunDir, nodefile.Name))
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return guardsLeft, errors.Join(errs...)
}

// attachedPods are the attached pods as the CNI plugin recorded them.
func attachedPods(cfg *config.Config, log *slog.Logger) []hostnet.Pod {
	records, err := podrecord.List(cfg.StateDir)
	if err != nil {
		log.Warn("some pods' records cannot be read", "error", err)
	}
	pods := make([]hostnet.Pod, 0, len(records))
	for _, r := range records {
		if p, ok := hostPod(&r); ok {
			pods = append(pods, p)
		}
	}
	return pods
}

// hostPod is what the source check knows of an attached pod; false while the pod has no address yet.
func hostPod(r *podrecord.Record) (hostnet.Pod, bool) {
	p := hostnet.Pod{Interface: r.HostIfName, Addrs: r.Addresses, Bridge: r.Bridge}
	if len(r.Addresses) == 0 {
		return p, false
	}
	if r.Bridge != "" {
		mac, err := net.ParseMAC(r.MAC)
		if err != nil {
			return p, false
		}
		p.MAC = mac
	}
	return p, true
}
