package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/node/config"
)

// remove takes away what the node made in the kernel. While pods are attached, what keeps their traffic from leaving
// in the clear stays; so does the node file, by which the CNI plugin adds and deletes pods.
func (n *Node) remove(cfg *config.Config) error {
	keep, err := withdraw(cfg)
	if err != nil {
		n.opt.Log.Warn("the pods' records cannot be read, so the guards stay", "error", err)
	}
	var kept error
	if keep {
		kept = hostnet.KeepPodRoutes(n.hostSpec(cfg, attachedPods(cfg, n.opt.Log)))
	}
	// The records are read again: a pod may have come meanwhile, whose route went with the device.
	return errors.Join(kept, n.device.Remove(), hostnet.Remove(n.hostSpec(cfg, attachedPods(cfg, n.opt.Log)), keep))
}

// withdraw reports whether pods are attached, or might be, so that the guards have to stay. When there are none it
// takes the node file away: a pod that were added without guards would send in the clear.
//
// The plugin reads the file, writes the pod's record and looks for the file again; here the records are read, the file
// is removed and the records are read again. So either the plugin finds no file, or its record is found here.
func withdraw(cfg *config.Config) (keepGuards bool, err error) {
	if keep, err := attached(cfg); keep {
		return true, err
	}
	path := filepath.Join(cfg.RunDir, nodefile.Name)
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return attached(cfg)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return true, fmt.Errorf("node file: %w", err)
	}
	keep, err := attached(cfg)
	if keep {
		err = errors.Join(err, atomicfile.Replace(path, content, 0o644))
	}
	return keep, err
}

// attached reports whether a pod has a record.
func attached(cfg *config.Config) (bool, error) {
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
	if err := checkAlone(); err != nil {
		return false, err
	}
	guardsLeft, withdrawErr := withdraw(cfg)
	if withdrawErr != nil {
		withdrawErr = fmt.Errorf("whether pods are attached cannot be found out, so the guards stay: %w", withdrawErr)
	}
	spec := hostnet.Spec{Device: cfg.Device, Pods: attachedPods(cfg, slog.New(slog.DiscardHandler))}
	errs := []error{withdrawErr, hostnet.Remove(spec, guardsLeft)}
	if err := os.Remove(cfg.SocketPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return guardsLeft, errors.Join(errs...)
}

// checkAlone refuses to work beside another node in the same network namespace, whatever its run directory: what the
// one sets up, the other would remove.
func checkAlone() error {
	device, err := hostnet.InUse()
	if err != nil {
		return err
	}
	if device != "" {
		return fmt.Errorf("%w in this network namespace, with device %s in use; stop it first: a namespace holds one node",
			ErrRunning, device)
	}
	return nil
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

// warnOfStrays names the pods that were attached when the node had other pod CIDRs.
func warnOfStrays(cfg *config.Config, pods []hostnet.Pod, log *slog.Logger) {
	for _, p := range pods {
		for _, a := range p.Addrs {
			if !slices.ContainsFunc(cfg.Self.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
				log.Warn("a pod's address is in none of this node's pod CIDRs, so it reaches nobody; delete the pod",
					"address", a, "interface", p.Interface, "podCIDRs", cfg.Self.PodCIDRs)
			}
		}
	}
}

// hostPod is what the source check knows of an attached pod; false while the pod has no address yet.
func hostPod(r *podrecord.Record) (hostnet.Pod, bool) {
	p := hostnet.Pod{Interface: r.HostIfName, Addrs: r.Addresses, Bridge: r.Bridge, DHCP: r.DHCP()}
	if len(r.Addresses) == 0 && !p.DHCP {
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
