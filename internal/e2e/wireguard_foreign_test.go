package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/wgpeer"
	"github.com/warren-net/warren/node/api"
)

// foreignMTU is what wireguard-go and wg-quick give a device, and what pods have: an underlay of 1500 less 80.
const foreignMTU = 1420

// A foreign is a machine without Warren: wireguard-go, at an address of its own in the pod network.
type foreign struct {
	c     *cluster
	node  *lab.Node // where it runs; in the cluster's files as a node, unless it is one of their `peers`
	peer  *wgpeer.Peer
	addrs map[int]netip.Addr // in the pod network, by family
}

// foreignNode adds a machine that the cluster's files list as a node with a key.
func (c *cluster) foreignNode(name string) *foreign {
	c.t.Helper()
	n := c.node(name)
	return c.foreignAt(n, map[int]netip.Addr{4: c.first(n, 4), 6: c.first(n, 6)})
}

// foreignLaptop adds a machine that the files list in `peers`, so that Warren does not know where it is.
func (c *cluster) foreignLaptop(name string) *foreign {
	c.t.Helper()
	return c.foreignAt(c.node(name), map[int]netip.Addr{
		4: netip.MustParseAddr("10.244.255.7"), 6: netip.MustParseAddr("fd00:10:244:ff::7"),
	})
}

func (c *cluster) foreignAt(n *lab.Node, addrs map[int]netip.Addr) *foreign {
	c.t.Helper()
	config := wgpeer.Config{
		Name: "wireguard-go-" + n.Name, Program: filepath.Join(binDir(), "wireguard-go"), MTU: foreignMTU,
		PrivateKey: key.NewPrivate(), Port: wireguardPort, Verbose: true,
	}
	for _, a := range addrs {
		config.Addresses = append(config.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	n.PublicKey = config.PrivateKey.Public()
	return &foreign{c: c, node: n, peer: wgpeer.New(c.lab, n.NS, config), addrs: addrs}
}

// knows has the machine know a Warren node, and where it is if it is to be the one who calls.
func (f *foreign) knows(n *lab.Node, endpoint netip.Addr, psk key.Preshared) {
	r := wgpeer.Remote{PublicKey: n.PublicKey, PresharedKey: psk, AllowedIPs: n.PodCIDRs}
	if endpoint.IsValid() {
		r.Endpoint = netip.AddrPortFrom(endpoint, wireguardPort)
	}
	f.peer.Remotes = append(f.peer.Remotes, r)
}

// asLaptop are the edits that list the machine in `peers` and not in `nodes`.
func (f *foreign) asLaptop() []edit {
	return []edit{
		func(file map[string]any) {
			var nodes []any
			for _, entry := range file["nodes"].([]any) {
				if entry.(map[string]any)["name"] != f.node.Name {
					nodes = append(nodes, entry)
				}
			}
			file["nodes"] = nodes
		},
		set("peers", []any{map[string]any{
			"name": f.node.Name, "publicKey": f.node.PublicKey.String(),
			"addresses": []string{f.addrs[4].String(), f.addrs[6].String()},
		}}),
	}
}

func (f *foreign) up() {
	f.c.t.Helper()
	f.c.ok(f.peer.Up(f.c.ctx))
}

// remote is what it says about a Warren node.
func (f *foreign) remote(n *lab.Node) wgpeer.RemoteState {
	f.c.t.Helper()
	s, err := f.peer.State(f.c.ctx)
	f.c.ok(err)
	return s.Remotes[n.PublicKey]
}

// said counts the lines of its log with a text.
func (f *foreign) said(text string) int {
	f.c.t.Helper()
	log, err := os.ReadFile(f.peer.Proc().Log)
	f.c.ok(err)
	return strings.Count(string(log), text)
}

// What it logs of handshakes.
const (
	saidSentInitiation = "Sending handshake initiation"
	saidGotInitiation  = "Received handshake initiation"
	saidGotResponse    = "Received handshake response"
)

// paths lead from a pod to the machine and back.
func (f *foreign) paths(pod *lab.Pod, family int) []lab.Path {
	return []lab.Path{
		{From: pod.NS, To: f.node.NS, Addr: f.addrs[family]},
		{From: f.node.NS, To: pod.NS, Addr: pod.Address(family)},
	}
}

// talks sends everything both ways.
func (f *foreign) talks(pod *lab.Pod, bytes int64) {
	f.c.t.Helper()
	for _, family := range families() {
		for _, p := range f.paths(pod, family) {
			f.c.ping(p.From, p.Addr, lab.Ping{})
			f.c.fullPing(p.From, p.Addr, foreignMTU)
			f.c.transfer(p, bytes)
			f.c.datagrams(p)
			largest := lab.PayloadFor(foreignMTU, p.Addr)
			f.c.plainDatagrams(p, []int{0, 1, 64, 65, largest})
			f.c.plainDatagrams(p, []int{4000})
		}
		f.c.sources(lab.Path{From: pod.NS, To: f.node.NS, Addr: f.addrs[family]}, pod.Address(family))
	}
	f.c.ping(pod.Node.NS, f.addrs[4], lab.Ping{})
}

// reached waits until the machine answers a pod.
func (f *foreign) reached(pod *lab.Pod) {
	f.c.t.Helper()
	f.c.within(40*time.Second, func() error {
		_, err := pod.NS.Ping(f.c.ctx, f.addrs[4], lab.Ping{Count: 1})
		return err
	})
}

// silent wants no packet to pass either way, for as long as two attempts at a handshake take.
func (f *foreign) silent(pod *lab.Pod) {
	f.c.t.Helper()
	const seconds = "6"
	for _, p := range f.paths(pod, 4) {
		out, err := p.From.Run(f.c.ctx, "ping", "-n", "-q", "-i", "0.5", "-w", seconds, p.Addr.String())
		if err == nil || !strings.Contains(out, " 0 received") {
			f.c.t.Errorf("%s reaches %s: %v\n%s", p.From.Name, p.Addr, err, out)
		}
	}
}

// TestWireGuardGo has Warren talk with wireguard-go over an underlay of either family: called by it, and calling it.
// Each of the two is then killed and stopped, and the handshake is made anew under traffic.
func TestWireGuardGo(t *testing.T) {
	for _, family := range families() {
		t.Run(fmt.Sprintf("Warren calls, IPv%d underlay", family), func(t *testing.T) {
			c := newEncrypted(t, fmt.Sprint("calls", family))
			a, f := c.encrypted("a"), c.foreignNode("f")
			if family == 6 {
				c.configure(underlayV6(a, f.node)...)
			} else {
				c.configure()
			}
			g := c.guardUnderlay()
			f.knows(a, netip.Addr{}, key.Preshared{})
			f.up()
			c.up(a)
			pod := c.pod(a, "1")
			f.reached(pod)
			if r := f.remote(a); r.Endpoint != netip.AddrPortFrom(a.Address(family), wireguardPort) {
				t.Errorf("the endpoint is %s, want Warren's listen port", r.Endpoint)
			}
			f.talks(pod, transferBytes/4)
			if f.said(saidGotInitiation) == 0 {
				t.Error("wireguard-go got no initiation")
			}
			f.restarts(pod)
			g.nothingReadable()
		})
		t.Run(fmt.Sprintf("wireguard-go calls, IPv%d underlay", family), func(t *testing.T) {
			c := newEncrypted(t, fmt.Sprint("called", family))
			a, f := c.encrypted("a"), c.foreignLaptop("f")
			edits := f.asLaptop()
			if family == 6 {
				edits = append(edits, underlayV6(a)...)
			}
			c.configure(edits...)
			g := c.guardUnderlay()
			f.knows(a, a.Address(family), key.Preshared{})
			c.up(a)
			f.up()
			pod := c.pod(a, "1")
			c.ping(f.node.NS, pod.V4, lab.Ping{})
			f.talks(pod, transferBytes/4)
			if f.said(saidGotInitiation) > 0 || f.said(saidGotResponse) == 0 {
				t.Error("Warren called, and does not know where")
			}
			f.rekeys(pod)
			f.restarts(pod)
			g.nothingReadable()
		})
	}
}

// rekeys has wireguard-go forget the session and make another one, again and again, under traffic.
func (f *foreign) rekeys(pod *lab.Pod) {
	f.c.t.Helper()
	var echoes []*lab.Echo
	for _, family := range families() {
		for _, p := range f.paths(pod, family) {
			e, err := lab.StartEcho(f.c.ctx, p, 5*time.Millisecond)
			f.c.ok(err)
			echoes = append(echoes, e)
		}
	}
	transfer, err := lab.StartTransfer(f.c.ctx, f.paths(pod, 4)[0], lab.TransferOptions{BytesPerSecond: 5 << 20})
	f.c.ok(err)
	r := f.peer.Remotes[0]
	before := f.said(saidGotResponse)
	const times = 5
	for range times {
		f.c.ok(f.peer.Remove(f.c.ctx, r.PublicKey))
		f.c.ok(f.peer.Set(f.c.ctx, r))
		for _, e := range echoes {
			f.c.ok(e.WaitAnswered(f.c.ctx))
		}
	}
	if n := f.said(saidGotResponse) - before; n < times {
		f.c.t.Errorf("%d handshakes, want %d", n, times)
	}
	for _, e := range echoes {
		if err := e.Stop(); err != nil {
			f.c.t.Error(err)
		}
	}
	transfer.Finish()
	if _, err := transfer.Wait(); err != nil {
		f.c.t.Error(err)
	}
}

// restarts ends either side, by a crash and in order, and wants them to find each other again.
func (f *foreign) restarts(pod *lab.Pod) {
	f.c.t.Helper()
	a := pod.Node
	for _, end := range []func(){
		func() { f.c.ok(a.Kill()); f.c.up(a) },
		func() { f.c.ok(a.Down(f.c.ctx)); f.c.up(a) },
		func() { f.c.ok(f.peer.Kill()); f.up() },
		func() { f.c.ok(f.peer.Down(f.c.ctx)); f.up() },
	} {
		end()
		if f.peer.Remotes[0].Endpoint.IsValid() {
			_, _ = f.node.NS.Ping(f.c.ctx, pod.V4, lab.Ping{Count: 1}) // so that it calls
		}
		f.reached(pod)
		f.talksShortly(pod)
	}
}

// talksShortly tries both directions and families.
func (f *foreign) talksShortly(pod *lab.Pod) {
	f.c.t.Helper()
	for _, family := range families() {
		for _, p := range f.paths(pod, family) {
			f.c.ping(p.From, p.Addr, lab.Ping{})
			f.c.transfer(p, 1<<20)
		}
	}
}

// TestWrongKeys holds that nothing passes between Warren and wireguard-go when a key is not what the other side
// expects, that Warren counts it, and that a reload with the right one mends it.
func TestWrongKeys(t *testing.T) {
	c := newEncrypted(t, "keys")
	a, f := c.encrypted("a"), c.foreignNode("f")
	right := f.node.PublicKey
	f.node.PublicKey = key.NewPrivate().Public()
	c.configure()
	g := c.guardUnderlay()
	f.knows(a, a.V4, key.Preshared{})
	f.up()
	c.up(a)
	pod := c.pod(a, "1")
	f.silent(pod)
	counted := func(what string) {
		t.Helper()
		if ask[api.Status](c, a, "status").Tunnel.Handshakes[what] == 0 {
			t.Errorf("`warren status` counts no handshakes as %s", what)
		}
	}
	counted("unknown-key")
	if n := c.drops(a, "no-session"); n == 0 {
		t.Error("packets for a peer that does not answer are not counted")
	}
	f.node.PublicKey = right
	c.ok(c.lab.WriteConfigs())
	c.reload(a)
	f.reached(pod)
	f.talksShortly(pod)

	// A preshared key at one side, another one at the other, and the same at last.
	psk := key.NewPreshared()
	remote := f.peer.Remotes[0]
	remote.PresharedKey = psk
	c.ok(f.peer.Set(c.ctx, remote))
	c.ok(f.peer.Kill()) // and the sessions that there are
	f.peer.Remotes[0] = remote
	f.up()
	f.silent(pod)
	c.edit(a, setNode(f.node.Name, "presharedKeyFile", c.psk(a, key.NewPreshared().RevealText())))
	c.reload(a)
	f.silent(pod)
	counted("invalid")
	c.edit(a, setNode(f.node.Name, "presharedKeyFile", c.psk(a, psk.RevealText())))
	c.reload(a)
	f.reached(pod)
	f.talksShortly(pod)
	if !f.remote(a).PresharedKey {
		t.Error("wireguard-go has no preshared key")
	}
	g.nothingReadable()
}

// endpoint is where Warren says that a peer is.
func (c *cluster) endpoint(n *lab.Node, peer string) netip.AddrPort {
	c.t.Helper()
	for _, p := range ask[[]api.Peer](c, n, "peers") {
		if p.Name == peer {
			return p.Endpoint
		}
	}
	c.t.Fatalf("`warren peers` of node %s does not list %s", n.Name, peer)
	return netip.AddrPort{}
}
