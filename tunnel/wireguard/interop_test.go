package wireguard

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/warren-net/warren/internal/key"
)

// A link is the underlay between a simNode and a wireguard-go device in this process: it implements conn.Bind for the
// latter. (internal/e2e has the tests against the program.)
type link struct {
	node   *simNode
	toNode chan []byte
	toWG   chan []byte
	closed chan struct{}
	once   sync.Once
	sent   [][]byte // all that the node sent
}

func newLink(n *simNode) *link {
	return &link{node: n, toNode: make(chan []byte, 1024), toWG: make(chan []byte, 1024), closed: make(chan struct{})}
}

var wgAddr = netip.MustParseAddrPort("192.0.2.200:51820")

func (l *link) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	l.closed, l.once = make(chan struct{}), sync.Once{}
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case m := <-l.toWG:
			sizes[0], eps[0] = copy(packets[0], m), &endpoint{l.node.addr}
			return 1, nil
		case <-l.closed:
			return 0, net.ErrClosed
		}
	}}, wgAddr.Port(), nil
}

func (l *link) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *link) SetMark(uint32) error { return nil }
func (l *link) BatchSize() int       { return 1 }

func (l *link) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		l.toNode <- bytes.Clone(b)
	}
	return nil
}

func (l *link) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return &endpoint{a}, nil
}

type endpoint struct{ netip.AddrPort }

func (e *endpoint) ClearSrc()           {}
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) DstToString() string { return e.String() }
func (e *endpoint) DstToBytes() []byte  { b, _ := e.MarshalBinary(); return b }
func (e *endpoint) DstIP() netip.Addr   { return e.Addr() }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// pump carries messages until the condition holds.
func (l *link) pump(t *testing.T, what string, until func() bool) {
	t.Helper()
	l.node.sim.sent = nil
	for deadline := time.Now().Add(20 * time.Second); !until(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		l.node.sim.now = time.Now().UnixNano()
		select {
		case m := <-l.toNode:
			l.node.inbox = append(l.node.inbox, simMessage{wgAddr, m})
		case <-time.After(time.Millisecond):
		}
		l.node.step()
		for _, m := range l.node.sim.sent {
			l.toWG <- m
		}
		l.sent = append(l.sent, l.node.sim.sent...)
		l.node.sim.sent = nil
	}
}

// noOffers wants that the node has offered nothing in the session, and takes the peer for no Warren.
func (l *link) noOffers(t *testing.T, s *Session) {
	t.Helper()
	read := 0
	for _, m := range l.sent {
		if !IsData(m) || Receiver(m) != s.remote {
			continue
		}
		packet, err := s.send.Open(nil, new(Nonce).set(binary.LittleEndian.Uint64(m[offsetCounter:])), m[HeaderLen:], nil)
		if err != nil {
			t.Fatal(err)
		}
		if read++; len(packet) > 0 {
			t.Errorf("the peer was sent %x", packet)
		}
	}
	if s.initiator && read == 0 {
		t.Error("not even the keepalive that confirms the session was seen")
	}
	if s.extended() || s.takes.Load() != 0 || s.offers.n > 0 || s.To(7) != s.remote {
		t.Errorf("the peer is taken for a Warren: %v, %b, %d offers", s.extended(), s.takes.Load(), s.offers.n)
	}
	if !s.initiator && s.frames != nil {
		t.Error("its initiation is taken for a Warren's")
	}
}

func TestWireGuardGo(t *testing.T) {
	for _, tt := range []struct {
		name string
		psk  bool
		ours bool // we begin
	}{{"we call", false, true}, {"it calls", false, false}, {"we call, preshared key", true, true},
		{"it calls, preshared key", true, false}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, 1)
			n := s.nodes[0]
			s.now = time.Now().UnixNano()
			theirs := key.NewPrivate()
			c := PeerConfig{ID: 1, Name: "wg", Public: theirs.Public(), Endpoint: wgAddr}
			if tt.psk {
				c.Preshared = key.NewPreshared()
			}
			n.SetPeers([]PeerConfig{c}, 0)
			l := newLink(n)
			tun := tuntest.NewChannelTUN()
			dev := device.NewDevice(tun.TUN(), l, device.NewLogger(device.LogLevelError, "wireguard-go: "))
			defer dev.Close()
			ourIP, theirIP := netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.2.1")
			configure(t, dev, map[string]string{"private_key": hexOf(theirs.Reveal())}, map[string]string{
				"public_key": hexOf(n.key.Public()), "preshared_key": hexOf(c.Preshared.Reveal()),
				"endpoint": n.addr.String(), "allowed_ip": ourIP.String() + "/32",
			})
			if err := dev.Up(); err != nil {
				t.Fatal(err)
			}
			p := n.Tunnel.Peer(1)
			if tt.ours {
				p.Want()
			} else {
				tun.Outbound <- tuntest.Ping(ourIP, theirIP)
			}
			l.pump(t, "a session", func() bool { return p.Current() != nil })
			if !tt.ours {
				l.pump(t, "their first packet", func() bool { return len(n.got) == 1 })
			}
			for range 3 {
				ping := tuntest.Ping(theirIP, ourIP)
				counter, _ := p.Current().Reserve(1)
				padded := append(bytes.Clone(ping), make([]byte, PaddedLen(len(ping), 1420)-len(ping))...)
				var nonce Nonce
				l.toWG <- p.Current().Seal(nil, &nonce, p.Current().head(counter), padded)
				select {
				case got := <-tun.Inbound:
					if !bytes.Equal(got, ping) {
						t.Fatal("the packet that arrived is another one")
					}
				case <-time.After(10 * time.Second):
					t.Fatal("our packet did not arrive")
				}
				n.got = nil
				back := tuntest.Ping(ourIP, theirIP)
				tun.Outbound <- back
				l.pump(t, "their packet", func() bool { return len(n.got) > 0 })
				if !bytes.HasPrefix(n.got[0], back) {
					t.Fatal("their packet is another one")
				}
			}
			// What is ours to say would have been said by then: offers are due at once, and each second.
			end := s.now + int64(1100*time.Millisecond)
			l.pump(t, "a second", func() bool { return s.now > end })
			if p.Current().initiator != tt.ours {
				t.Errorf("a session that we began %v, want %v", p.Current().initiator, tt.ours)
			}
			l.noOffers(t, p.Current())
		})
	}
}

// A wireguard-go that is called too often answers with cookies, and ours accept its.
func TestWireGuardGoTakesOurCookie(t *testing.T) {
	s := newSim(t, 1)
	n := s.nodes[0]
	s.now = time.Now().UnixNano()
	theirs := key.NewPrivate()
	n.SetPeers([]PeerConfig{{ID: 1, Name: "wg", Public: theirs.Public()}}, 0)
	l := newLink(n)
	tun := tuntest.NewChannelTUN()
	dev := device.NewDevice(tun.TUN(), l, device.NewLogger(device.LogLevelSilent, ""))
	defer dev.Close()
	ourIP, theirIP := netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.2.1")
	configure(t, dev, map[string]string{"private_key": hexOf(theirs.Reveal())}, map[string]string{
		"public_key": hexOf(n.key.Public()), "endpoint": n.addr.String(), "allowed_ip": ourIP.String() + "/32",
	})
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	n.loadedAt = time.Now().UnixNano() + int64(2*time.Second) // under load for three seconds from now
	tun.Outbound <- tuntest.Ping(ourIP, theirIP)
	l.pump(t, "a cookie", func() bool { return n.Counters.CookiesSent.Load() > 0 })
	if n.Counters.Responded.Load() != 0 {
		t.Fatal("answered without a cookie")
	}
	l.pump(t, "an initiation with the cookie", func() bool {
		n.loadedAt = time.Now().UnixNano()
		return n.Counters.Responded.Load() > 0
	})
}

func hexOf(b [32]byte) string { return hex.EncodeToString(b[:]) }

func configure(t *testing.T, dev *device.Device, sections ...map[string]string) {
	t.Helper()
	var b strings.Builder
	for _, s := range sections {
		if k, ok := s["public_key"]; ok {
			fmt.Fprintf(&b, "public_key=%s\n", k)
			delete(s, "public_key")
		}
		for k, v := range s {
			fmt.Fprintf(&b, "%s=%s\n", k, v)
		}
	}
	if err := dev.IpcSet(b.String()); err != nil {
		t.Fatal(errors.Unwrap(err), err)
	}
}
