package wgpeer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/key"
)

// text is the configuration in the form of `wg setconf` (wg(8)).
func (c Config) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\nListenPort = %d\n", c.PrivateKey.RevealText(), c.Port)
	for _, r := range c.Remotes {
		b.WriteString(r.text())
	}
	return b.String()
}

func (r Remote) text() string {
	allowed := make([]string, len(r.AllowedIPs))
	for i, a := range r.AllowedIPs {
		allowed[i] = a.String()
	}
	// Zeros are no key: left out, an older one would stay.
	text := fmt.Sprintf("[Peer]\nPublicKey = %s\nPresharedKey = %s\nAllowedIPs = %s\nPersistentKeepalive = %d\n",
		r.PublicKey, r.PresharedKey.RevealText(), strings.Join(allowed, ", "), int(r.Keepalive/time.Second))
	if r.Endpoint.IsValid() {
		text += fmt.Sprintf("Endpoint = %s\n", r.Endpoint)
	}
	return text
}

// wg runs the program wg.
func (p *Peer) wg(ctx context.Context, args ...string) (string, error) {
	return p.ns.Run(ctx, append([]string{"wg"}, args...)...)
}

// conf has wg read a configuration, from a file, as it is for nobody else's eyes.
func (p *Peer) conf(ctx context.Context, command, text string) error {
	return p.withFile(text, func(file string) error {
		_, err := p.wg(ctx, command, p.device, file)
		return err
	})
}

func (p *Peer) withFile(text string, f func(file string) error) error {
	file := filepath.Join(p.lab.Dir, p.device+".conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configuration of %s: %w", p.Name, err)
	}
	return errors.Join(f(file), os.Remove(file))
}

// SetConf has wg put a configuration in its own form in place of all keys and remotes.
func (p *Peer) SetConf(ctx context.Context, text string) error { return p.conf(ctx, "setconf", text) }

// Set adds a remote, or changes the one with this public key. The session with it stays.
func (p *Peer) Set(ctx context.Context, r Remote) error { return p.conf(ctx, "addconf", r.text()) }

// Remove forgets a remote, and the session with it.
func (p *Peer) Remove(ctx context.Context, remote key.Public) error {
	_, err := p.wg(ctx, "set", p.device, "peer", remote.String(), "remove")
	return err
}

// SetPrivateKey gives the peer another key. All its sessions end.
func (p *Peer) SetPrivateKey(ctx context.Context, k key.Private) error {
	p.PrivateKey = k
	return p.withFile(k.RevealText(), func(file string) error {
		_, err := p.wg(ctx, "set", p.device, "private-key", file)
		return err
	})
}

// SetPort has the peer listen, and so send, elsewhere. Its sessions stay.
func (p *Peer) SetPort(ctx context.Context, port uint16) error {
	p.Port = port
	_, err := p.wg(ctx, "set", p.device, "listen-port", strconv.Itoa(int(port)))
	return err
}

// A State is what a peer says about itself.
type State struct {
	PublicKey key.Public
	Port      uint16
	Remotes   map[key.Public]RemoteState
}

// A RemoteState is what a peer says about a remote.
type RemoteState struct {
	PresharedKey   bool           // there is one
	Endpoint       netip.AddrPort // zero: not known
	Handshake      time.Time      // the last one that was completed, in whole seconds; zero: none
	Received, Sent uint64         // bytes, of the protocol's messages
}

// State asks the peer.
func (p *Peer) State(ctx context.Context) (State, error) {
	out, err := p.wg(ctx, "show", p.device, "dump")
	if err != nil {
		return State{}, err
	}
	s, err := parseDump(out)
	if err != nil {
		return State{}, fmt.Errorf("`wg show dump` of %s: %w", p.Name, err)
	}
	return s, nil
}

// parseDump reads what `wg show INTERFACE dump` prints: a line about itself and one for each remote (wg(8)).
func parseDump(text string) (State, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	own := strings.Split(lines[0], "\t")
	if len(own) != 4 {
		return State{}, fmt.Errorf("%d fields in the first line, want 4", len(own)) // one is the private key
	}
	s := State{Remotes: make(map[key.Public]RemoteState)}
	var err error
	if s.PublicKey, err = key.ParsePublic(own[1]); err != nil {
		return State{}, err
	}
	port, err := strconv.ParseUint(own[2], 10, 16)
	if err != nil {
		return State{}, fmt.Errorf("port: %w", err)
	}
	s.Port = uint16(port)
	for _, line := range lines[1:] {
		k, r, err := parseRemote(strings.Split(line, "\t"))
		if err != nil {
			return State{}, err
		}
		s.Remotes[k] = r
	}
	return s, nil
}

func parseRemote(fields []string) (k key.Public, r RemoteState, err error) {
	if len(fields) != 8 {
		return k, r, fmt.Errorf("%d fields in the line of a remote, want 8", len(fields))
	}
	if k, err = key.ParsePublic(fields[0]); err != nil {
		return k, r, err
	}
	const none = "(none)"
	r.PresharedKey = fields[1] != none
	if fields[2] != none {
		if r.Endpoint, err = netip.ParseAddrPort(fields[2]); err != nil {
			return k, r, fmt.Errorf("endpoint of %s: %w", k, err)
		}
	}
	seconds, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil {
		return k, r, fmt.Errorf("latest handshake with %s: %w", k, err)
	}
	if seconds != 0 {
		r.Handshake = time.Unix(seconds, 0)
	}
	for i, to := range []*uint64{&r.Received, &r.Sent} {
		if *to, err = strconv.ParseUint(fields[5+i], 10, 64); err != nil {
			return k, r, fmt.Errorf("bytes transferred with %s: %w", k, err)
		}
	}
	return k, r, nil
}
