package cni_test

import (
	"errors"
	"log/slog"
	"net"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
)

// The daemon puts back pods' routes and source checks at any moment, also while a pod is being attached or detached.
func TestBesideTheDaemon(t *testing.T) {
	for _, mode := range []string{cni.ModeRouted, cni.ModeBridge} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			stop, done := make(chan struct{}), make(chan error)
			const daemons = 2 // one would do; two make it likelier to meet
			for range daemons {
				go func() { done <- n.applyUntil(stop) }()
			}
			var wg sync.WaitGroup
			for range 3 {
				p := n.pod(n.conf("1.0.0", mode))
				wg.Go(func() {
					for range 25 {
						if _, err := n.do(p.call("ADD")); err != nil {
							t.Errorf("ADD: %s", err.Msg)
						}
						if _, err := n.do(p.call("DEL")); err != nil {
							t.Errorf("DEL: %s", err.Msg)
						}
					}
				})
			}
			wg.Wait()
			close(stop)
			for range daemons {
				if err := <-done; err != nil {
					t.Errorf("setting the kernel up meanwhile: %v", err)
				}
			}
			left := regexp.MustCompile(`(?m)^.*(wrn[0-9a-f]{11}|masquerade).*$`).FindAllString(n.dump(), -1)
			if len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// applyUntil does what the daemon does, again and again. The TUN device is missing, which is no matter here.
func (n *node) applyUntil(stop <-chan struct{}) error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	ns, err := netns.GetFromName(n.ns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := n.applyOnce(); err != nil {
			return err
		}
	}
}

func (n *node) applyOnce() error {
	records, err := podrecord.List(n.state())
	if err != nil {
		return err
	}
	spec := hostnet.Spec{
		Device: "warren0", Gateways: n.file.Gateways, PodCIDRs: n.file.PodCIDRs, ClusterCIDRs: n.file.ClusterCIDRs,
		Masquerade: true,
		Attached: func() bool {
			names, err := podrecord.Names(n.state())
			return err != nil || len(names) > 0
		},
	}
	for _, r := range records {
		mac, _ := net.ParseMAC(r.MAC)
		if len(r.Addresses) > 0 {
			spec.Pods = append(spec.Pods, hostnet.Pod{Interface: r.HostIfName, Addrs: r.Addresses, Bridge: r.Bridge, MAC: mac})
		}
	}
	_, err = hostnet.Apply(spec, slog.New(slog.DiscardHandler))
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 &&
		errors.Is(err, hostnet.ErrNoDevice) {
		return nil // nothing but that
	}
	return err
}
