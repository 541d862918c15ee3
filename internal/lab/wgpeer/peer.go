// Package wgpeer runs WireGuard peers that are not Warren's in the namespaces of a lab: wireguard-go, configured by the
// program wg of Debian's wireguard-tools. Tests of the encrypted encapsulation and the benchmark use it.
//
// A Peer's methods must not be called concurrently.
package wgpeer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
)

// A Config is what a peer is told when it comes up.
type Config struct {
	Name       string // of its process, for messages; at most one runs with a name at a time
	Program    string // wireguard-go: see Build
	MTU        int    // of the device, bytes
	PrivateKey key.Private
	Port       uint16 // where it listens; 0: the kernel's choice
	Addresses  []netip.Prefix
	Remotes    []Remote
	Verbose    bool // logs handshakes and what it could not use
}

// A Remote is whom a peer talks with.
type Remote struct {
	PublicKey    key.Public
	PresharedKey key.Preshared
	Endpoint     netip.AddrPort // zero: the source of the last packet that proved to be its
	AllowedIPs   []netip.Prefix // the peer has routes to them, as wg-quick makes them
	Keepalive    time.Duration  // whole seconds
}

// A Peer is a wireguard-go in a namespace, when it is up.
type Peer struct {
	Config // may be changed by its owner before Up
	lab    *lab.Lab
	ns     *lab.NS
	device string
	proc   *lab.Proc
}

// New returns a peer that is not up. It ends with the lab.
func New(l *lab.Lab, ns *lab.NS, c Config) *Peer { return &Peer{Config: c, lab: l, ns: ns} }

// Device is the name of its device, another one each time it comes up. It must not be renamed: wireguard-go would not
// hear of its MTU any more.
func (p *Peer) Device() string { return p.device }

// Proc is the current or last process; nil before the first.
func (p *Peer) Proc() *lab.Proc { return p.proc }

// Up starts the process and configures it: keys, remotes, addresses, routes.
func (p *Peer) Up(ctx context.Context) error {
	device, err := reserve()
	if err != nil {
		return err
	}
	p.device = device
	p.lab.OnClose(func() error { return release(device) })
	level := "error"
	if p.Verbose {
		level = "verbose"
	}
	p.proc, err = p.lab.Start(p.ns, p.Name, "env", "LOG_LEVEL="+level, p.Program, "-f", device)
	if err != nil {
		return errors.Join(err, release(device))
	}
	err = waitSocket(ctx, device, p.proc.Done())
	if err == nil {
		err = p.configure(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w; its log:\n%s", p.Name, err, p.proc.LogTail())
	}
	return nil
}

// configure tells a process that has just started everything.
func (p *Peer) configure(ctx context.Context) error {
	if err := p.conf(ctx, "setconf", p.text()); err != nil {
		return err
	}
	lines := [][]string{{"ip", "link", "set", p.device, "mtu", fmt.Sprint(p.MTU), "up"}}
	for _, a := range p.Addresses {
		line := []string{"ip", "addr", "add", a.String(), "dev", p.device}
		if a.Addr().Is6() {
			line = append(line, "nodad") // the kernel takes its time, also where there is nothing to detect
		}
		lines = append(lines, line)
	}
	for _, r := range p.Remotes {
		for _, a := range r.AllowedIPs {
			lines = append(lines, []string{"ip", "route", "replace", a.String(), "dev", p.device})
		}
	}
	for _, line := range lines {
		if _, err := p.ns.Run(ctx, line...); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends the process as a crash would. Its device, addresses and routes are gone with it.
func (p *Peer) Kill() error { return errors.Join(p.proc.Kill(), release(p.device)) }

// Down ends the process in order.
func (p *Peer) Down(ctx context.Context) error {
	if err := p.proc.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := p.proc.Wait(ctx); err != nil {
		return fmt.Errorf("%s after SIGTERM: %w; its log:\n%s", p.Name, err, p.proc.LogTail())
	}
	return release(p.device)
}
