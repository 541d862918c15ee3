package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/poll"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/udp"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A secure is the node's end of the encrypted tunnels: nil parts where the node goes without, which only one whose
// peers are all plaintext may.
type secure struct {
	tunnel  *wireguard.Tunnel
	sockets *udp.WireGuardGroup
	waiter  controlWaiter
	why     error // why there is none

	offloads []tunnel.OffloadState

	// Of the writer goroutine.
	ring   key.Ring      // the node's private keys
	halves []key.Public  // the public ones of pairs
	pairs  []key.Private // the ring's keys when halves were computed
}

// controlWaiter waits for the control socket.
type controlWaiter struct{ *poll.Poller }

// Wait implements wireguard.Waiter.
func (c controlWaiter) Wait(timeout time.Duration) error {
	_, _, err := c.Poller.Wait(timeout)
	return err
}

// openSecure makes the tunnel and opens its sockets: always, as a peer may become an encrypted one while the node runs.
// What fails ends the start only where it is needed now.
func (n *Node) openSecure(lanes, workers int) error {
	err := n.trySecure(lanes, workers)
	if err == nil || uses(n.cfg, n.nodes, true) {
		return err
	}
	n.secure = secure{why: err}
	n.opt.Log.Warn("nothing can be encrypted until a restart; no peer asks for it now", "error", err)
	return nil
}

// uses reports whether this node itself, or a peer of it, is to be encrypted, or else whether one is to be plaintext.
func uses(cfg *config.Config, nodes []control.Node, encrypted bool) bool {
	return cfg.Self.Plaintext() != encrypted || slices.ContainsFunc(nodes, func(peer control.Node) bool {
		return cfg.Encrypted(&peer) == encrypted
	})
}

func (n *Node) trySecure(lanes, workers int) error {
	cfg := n.cfg
	ring, created, err := loadRing(cfg)
	if err != nil {
		return err
	}
	if created {
		n.opt.Log.Info("this node has a key now; its public half goes into publicKey of its entry on all nodes",
			"publicKey", ring.Keys[0].Public())
	}
	if _, err := preferred(ring, cfg); err != nil {
		return err
	}
	port := cfg.WireGuardPortOf(&cfg.Self)
	group, err := udp.OpenWireGuard(lanes, udp.Config{
		Port: port, Addrs: cfg.Self.Addresses,
		GSO: udpMode(cfg.Offloads.UDPGSO), GRO: udpMode(cfg.Offloads.UDPGRO),
	})
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("UDP port %d is in use by another program or by a kernel WireGuard device; stop that "+
			"(`ss -ulpn`, `ip -d link show type wireguard`), or set another wireguard.port on all nodes", port)
	case err != nil:
		return fmt.Errorf("encrypted tunnels: %w", err)
	}
	for _, s := range append(slices.Clone(group.Lanes), group.Control) {
		n.closers = append(n.closers, s.Close)
	}
	var fds []poll.FD
	for _, fd := range group.Control.FDs() {
		fds = append(fds, poll.FD{FD: fd})
	}
	p, err := poll.New(fds...)
	if err != nil {
		return err
	}
	n.closers = append(n.closers, p.Close)
	frames, fast := cfg.Offloads.Superframes, wireguard.FastAES()
	n.secure = secure{sockets: group, waiter: controlWaiter{p}, ring: ring, offloads: superframes(frames, fast)}
	n.secure.tunnel = wireguard.New(wireguard.Config{
		Lanes: lanes, Workers: workers, Superframes: frames, AES: fast,
		Established: func(int32) {
			for _, w := range n.workers {
				w.SessionUp()
			}
		},
		Roamed: func(int32) {
			if n.roamed.note(time.Now()) {
				poke(n.pokeLink)
			}
		},
		Paused: func(id int32, paused bool) {
			name := "peer" // its number says nothing to anybody
			if v := n.view.Load(); v != nil {
				if p := v.snapshot.PeerByTunnel(id); p != nil {
					name = p.Name
				}
			}
			if paused {
				n.opt.Log.Warn("superframes lose pieces on their way here, so the peer is asked for single packets for a while; "+
					"see lost-pieces in docs/operations.md", "peer", name)
				return
			}
			n.opt.Log.Info("superframes are asked for again", "peer", name)
		},
		Reachable:  n.mayBeEndpoint,
		PathEvents: n.pathEvents,
	})
	return nil
}

// superframes says whether they are made, and with which cipher.
func superframes(use, fastAES bool) []tunnel.OffloadState {
	frames := tunnel.OffloadState{Name: "superframes", Enabled: use}
	aes := tunnel.OffloadState{Name: "superframes-aes", Enabled: use && fastAES}
	switch {
	case !use:
		frames.Reason, aes.Reason = "configuration", "configuration"
	case !fastAES:
		aes.Reason = "this processor has no instructions for AES-GCM, so they are sealed with ChaCha20-Poly1305"
	}
	return []tunnel.OffloadState{frames, aes}
}

// A roaming notes that encrypted peers were heard elsewhere. A peer may do that as often as it likes, and each time
// that the writer hears of it costs.
type roaming struct {
	news atomic.Bool
	told atomic.Int64 // when the writer was last woken for it, Unix nanoseconds
}

// roamingEvery is how often the writer is woken for it; what comes between is found when it looks by itself.
const roamingEvery = time.Second

// note reports whether the writer is to be woken.
func (r *roaming) note(now time.Time) bool {
	r.news.Store(true)
	last := r.told.Load()
	return now.Sub(time.Unix(0, last)).Abs() >= roamingEvery && r.told.CompareAndSwap(last, now.UnixNano())
}

// loadRing reads the node's keys, and makes the first one unless the node's entry has one already, which it could only
// contradict.
func loadRing(cfg *config.Config) (ring key.Ring, created bool, err error) {
	if cfg.Self.PublicKey.IsZero() || cfg.Control != config.Static { // a cluster that changes by itself is told of it
		ring, created, err = key.LoadOrCreate(cfg.StateDir)
	} else if ring, err = key.Load(cfg.StateDir); errors.Is(err, key.ErrNone) {
		why, mend := lostKey(cfg)
		return ring, false, fmt.Errorf("%s: %s", why, mend)
	}
	if err != nil {
		return ring, false, fmt.Errorf("this node's key: %w", err)
	}
	return ring, created, nil
}

// lostKey says what is wrong where the node's entry has a key and the node has none, and how to mend it.
func lostKey(cfg *config.Config) (why, mend string) {
	why = fmt.Sprintf("%s has publicKey %s for node %s, but there is no %s", cfg.File, cfg.Self.PublicKey, cfg.Node,
		filepath.Join(cfg.StateDir, key.File))
	return why, fmt.Sprintf("put the file back, or make a key with `warren key new` and put what it prints into "+
		"publicKey of node %s on all nodes", cfg.Node)
}

// mayBeEndpoint refuses what nothing can be sent to: link-local addresses, whose interface is not known, and others
// that are no host's; and what the tunnel would carry its own packets to: the pod network, and this node.
func (n *Node) mayBeEndpoint(a netip.Addr) bool {
	if !a.IsGlobalUnicast() || a.Is4In6() || slices.Contains(n.cfg.Self.Addresses, a) {
		return false
	}
	v := n.view.Load()
	return v == nil || !slices.ContainsFunc(v.cfg.Cluster, func(c netip.Prefix) bool { return c.Contains(a) })
}

// preferred is which of the keys the node's entry names, so the one that its peers know. An error when it names none.
func preferred(ring key.Ring, cfg *config.Config) (int, error) {
	return preferredOf(publicsOf(ring), cfg)
}

func preferredOf(publics []key.Public, cfg *config.Config) (int, error) {
	want := cfg.Self.PublicKey
	if want.IsZero() {
		return 0, nil
	}
	if i := slices.Index(publics, want); i >= 0 {
		return i, nil
	}
	if cfg.Control != config.Static {
		return 0, nil // the cluster has not heard of it yet
	}
	file := filepath.Join(cfg.StateDir, key.File)
	return 0, fmt.Errorf("publicKey %s of node %s in %s is not this node's key, whose public half is %s; correct the "+
		"entry on all nodes, or restore %s", want, cfg.Node, cfg.File, publics[0], file)
}

// lanes are the sockets of the workers.
func (s *secure) lanes() []*udp.Socket {
	if s.sockets == nil {
		return nil
	}
	return s.sockets.Lanes
}

// newest is the public half of the node's newest key; zero: it has none.
func (s *secure) newest() key.Public {
	if len(s.ring.Keys) == 0 {
		return key.Public{}
	}
	return s.ring.Newest().Public()
}

// publics are the public halves of the node's keys, the newest first. They are asked for with every snapshot, and each
// costs a multiplication on the curve.
func (s *secure) publics() []key.Public {
	if !slices.Equal(s.pairs, s.ring.Keys) {
		s.pairs, s.halves = slices.Clone(s.ring.Keys), publicsOf(s.ring)
	}
	return s.halves
}

func publicsOf(ring key.Ring) []key.Public {
	out := make([]key.Public, 0, len(ring.Keys))
	for _, k := range ring.Keys {
		out = append(out, k.Public())
	}
	return out
}

// publicKeys are the same as text.
func (s *secure) publicKeys() []string {
	out := []string{}
	for _, k := range s.publics() {
		out = append(out, k.String())
	}
	return out
}

// run serves handshakes until ctx ends.
func (s *secure) run(ctx context.Context) error {
	if s.tunnel == nil {
		return nil
	}
	return s.tunnel.Run(ctx, s.sockets.Control, s.waiter)
}

// readKeys reads the node's keys again, which `warren key rotate` may have changed, and the preshared ones, and reports
// whether any have. What cannot be read leaves those in force that are.
func (w *writer) readKeys() bool {
	s := &w.node.secure
	if s.tunnel == nil {
		return false
	}
	return w.readRing(s) || w.plan.files.changed()
}

func (w *writer) readRing(s *secure) bool {
	ring, err := key.Load(w.plan.cfg.StateDir)
	if err == nil {
		_, err = preferred(ring, w.plan.cfg)
	}
	text := ""
	if err != nil {
		text = fmt.Sprintf("this node goes on with the keys that it has: %v", err)
	}
	changed := text != w.keyError
	w.keyError = text
	if err != nil || slices.EqualFunc(ring.Keys, s.ring.Keys, func(a, b key.Private) bool { return a == b }) {
		return changed
	}
	s.ring = ring
	w.log.Info("this node's keys have changed", "newest", ring.Keys[0].Public(), "keys", len(ring.Keys))
	return true
}

// tell gives the tunnel the keys and what has changed of the peers.
func (s *secure) tell(cfg *config.Config, out *outcome) {
	if s.tunnel == nil {
		return
	}
	prefer, err := preferredOf(s.publics(), cfg)
	if err != nil {
		prefer = 0 // the warning says so
	}
	s.tunnel.SetKeys(s.ring.Keys, prefer)
	if out.whole {
		s.tunnel.SetPeers(out.tunnels, prefer)
	} else {
		s.tunnel.ChangePeers(out.tunnels, out.gone, prefer)
	}
}

// secureWarnings is what people should know of keys.
func (w *writer) secureWarnings() []string {
	s, cfg := &w.node.secure, w.plan.cfg
	var out []string
	if w.keyError != "" {
		out = append(out, w.keyError)
	}
	if s.tunnel == nil {
		return out
	}
	out = append(out, w.silentPeers()...)
	if len(s.ring.Keys) < 2 {
		return out
	}
	newest := s.ring.Keys[0].Public()
	if cfg.Self.PublicKey != newest {
		return append(out, fmt.Sprintf("this node has a new key: put publicKey %s into its entry on all nodes, then end the "+
			"change with `warren key rotate --finish`", newest))
	}
	return append(out, fmt.Sprintf("this node answers to its previous key %s too: when all nodes have publicKey %s for "+
		"it, end the change with `warren key rotate --finish`", s.ring.Keys[1].Public(), newest))
}

// silentPeers names the peers that were called for as long as the protocol calls, and have not answered since.
func (w *writer) silentPeers() []string {
	var out []string
	for _, m := range w.plan.peers {
		n := &m.node
		if n.Roams || m.tunnel == nil || !w.plan.cfg.Encrypted(n) {
			continue
		}
		if s, ok := w.node.secure.tunnel.Status(m.tunnel.ID); ok && s.Silent {
			out = append(out, fmt.Sprintf("peer %s does not answer the key exchange at %s, so nothing reaches it: is its "+
				"daemon up, does a firewall let UDP port %d through, are publicKey and preshared key the same at both ends?",
				n.Name, s.Endpoint, w.plan.cfg.WireGuardPortOf(n)))
		}
	}
	slices.Sort(out)
	return out
}
