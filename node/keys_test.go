package node_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// encrypted gives all nodes keys.
func (c *cluster) encrypted() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.Settings.Encapsulation = "wireguard"
		c.ok(n.MakeKey())
	}
	c.write()
}

func TestKeyRefused(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.encrypted()
	a := c.nodes[0]
	before := c.state(a)
	good, err := os.ReadFile(a.KeyFile())
	c.ok(err)
	c.ok(os.Chmod(a.KeyFile(), 0o640))
	c.refused(a, a.KeyFile(), "0640", "chmod 600")
	c.ok(os.Chmod(a.KeyFile(), 0o600))
	c.ok(os.WriteFile(a.KeyFile(), good[:20], 0o600))
	c.refused(a, a.KeyFile())
	other := key.NewPrivate()
	c.ok(os.WriteFile(a.KeyFile(), []byte(other.RevealText()+"\n"), 0o600))
	c.refused(a, "publicKey "+a.PublicKey.String(), "is not this node's key", other.Public().String(), a.ConfigFile)
	c.same(a, before)
	c.ok(os.WriteFile(a.KeyFile(), good, 0o600))
	c.ok(a.Up(c.ctx))
}

// `warren check` names each key that `warren up` would refuse, and a rotation that nobody finished.
func TestCheckKeys(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.encrypted()
	a := c.nodes[0]
	check := func(bad bool, wants ...string) {
		t.Helper()
		out, err := a.Warren(c.ctx, "check")
		if (err != nil) != bad {
			t.Errorf("error %v, want one: %v", err, bad)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	}
	good, err := os.ReadFile(a.KeyFile())
	c.ok(err)
	check(false, "ok       key: "+a.PublicKey.String())

	c.ok(os.Remove(a.KeyFile()))
	check(true, "there is no "+a.KeyFile(), "warren key new")
	if _, err := os.Stat(a.KeyFile()); err == nil {
		t.Error("the check made a key")
	}
	other := key.NewPrivate()
	c.ok(os.WriteFile(a.KeyFile(), []byte(other.RevealText()+"\n"), 0o600))
	check(true, "publicKey "+a.PublicKey.String(), "is not this node's key", "put "+other.Public().String())
	c.ok(os.Chmod(a.KeyFile(), 0o644))
	check(true, a.KeyFile()+" has mode 0644")
	c.ok(os.WriteFile(a.KeyFile(), good, 0o600))
	c.ok(os.Chmod(a.KeyFile(), 0o600))
	_, err = key.Rotate(a.StateDir)
	c.ok(err)
	check(false, "warning  key: a rotation is under way", "warren key rotate --finish")

	shared := filepath.Join(a.StateDir, "psk")
	file, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	c.ok(os.WriteFile(a.ConfigFile, append(file, "wireguard: {presharedKeyFile: "+shared+"}\n"...), 0o600))
	check(true, "preshared key: of b: ", shared, "wg genpsk")
	c.refused(a, shared, "wg genpsk")
	c.ok(os.WriteFile(shared, []byte(key.NewPreshared().RevealText()+"\n"), 0o600))
	check(false, "ok       preshared key: "+shared)
}

// A node has a key from its first start on, also where nothing is encrypted yet.
func TestKeyIsMade(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	info, err := os.Stat(a.KeyFile())
	c.ok(err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	ring, err := key.Load(a.StateDir)
	c.ok(err)
	if s := c.status(a); len(s.Tunnel.PublicKeys) != 1 || s.Tunnel.PublicKeys[0] != ring.Newest().Public().String() {
		t.Errorf("public keys %v", s.Tunnel.PublicKeys)
	}
}

// takePort has a kernel device take a UDP port in the node's namespace.
func (c *cluster) takePort(n *lab.Node, port int) {
	c.t.Helper()
	for _, args := range [][]string{
		{"link", "add", "vx0", "type", "vxlan", "id", "9", "dstport", fmt.Sprint(port), "dev", "eth0"},
		{"link", "set", "vx0", "up"},
	} {
		_, err := n.NS.Run(c.ctx, append([]string{"ip"}, args...)...)
		c.ok(err)
	}
}

// The port of the encapsulation that is needed has to be free; the other one's need not, until somebody wants it.
func TestOtherPortInUse(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("encrypted %v", secure), func(t *testing.T) {
			c := newCluster(t, "a", "b")
			needed, other := 4789, 51820
			if secure {
				c.encrypted()
				needed, other = other, needed
			} else {
				c.ok(c.nodes[0].MakeKey())
				c.ok(c.nodes[1].MakeKey())
				c.nodes[0].Encapsulation, c.nodes[1].Encapsulation = "vxlan", "vxlan"
				c.write()
			}
			a, b := c.nodes[0], c.nodes[1]
			c.takePort(a, other)
			c.takePort(b, needed)
			c.refused(b, fmt.Sprintf("UDP port %d is in use", needed))
			_, err := b.NS.Run(c.ctx, "ip", "link", "del", "vx0")
			c.ok(err)
			c.ok(a.Up(c.ctx))
			c.ok(b.Up(c.ctx))
			c.ping(a, b)

			// Now the other one is asked for: the node says why not, and goes on.
			for _, n := range c.nodes {
				n.Encapsulation = map[bool]string{true: "vxlan", false: ""}[secure]
			}
			c.write()
			c.eventually(func() error {
				r := c.status(a).LastReload
				if r == nil || !strings.Contains(r.Error, fmt.Sprintf("UDP port %d is in use", other)) {
					return fmt.Errorf("%w: %+v", errNotYet, r)
				}
				return nil
			})
		})
	}
}

// No private key may appear in anything that a node says.
func TestSecretsStaySecret(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.encrypted()
	a, b := c.nodes[0], c.nodes[1]
	a.Settings.Metrics, a.Settings.Log = "127.0.0.1:9187", map[string]string{"level": "debug"}
	c.write()
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	var said strings.Builder
	for _, what := range []string{"status", "peers", "routes", "pods", "drops"} {
		for _, more := range [][]string{nil, {"-o", "json"}} {
			out, err := a.Warren(c.ctx, append([]string{what}, more...)...)
			c.ok(err)
			said.WriteString(out)
		}
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, to string) (net.Conn, error) { return a.NS.Dial(ctx, to) },
	}}
	r, err := client.Get("http://127.0.0.1:9187/metrics")
	c.ok(err)
	defer r.Body.Close()
	_, err = io.Copy(&said, r.Body)
	c.ok(err)
	said.WriteString(a.Daemon().LogTail())
	if !strings.Contains(said.String(), a.PublicKey.String()) || !strings.Contains(said.String(), "warren_peer_session") {
		t.Error("what was asked does not have the public keys in it, so it proves nothing")
	}
	for _, n := range c.nodes {
		ring, err := key.Load(n.StateDir)
		c.ok(err)
		secret := ring.Newest().Reveal()
		for _, form := range []string{ring.Newest().RevealText(), fmt.Sprintf("%x", secret), fmt.Sprint(secret),
			string(secret[:])} {
			if strings.Contains(said.String(), form) {
				t.Errorf("the private key of node %s is in what node a says", n.Name)
			}
		}
	}
}

func TestPeersSayHowTheyAreReached(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.encrypted()
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	p := ask[[]api.Peer](c, a, "peers")
	if len(p) != 1 || p[0].Encapsulation != "wireguard" || p[0].PublicKey != b.PublicKey.String() || !p[0].Session ||
		p[0].LastHandshake == nil || p[0].Endpoint.Addr() != b.V4 || p[0].Endpoint.Port() != 51820 || p[0].MAC != "" {
		t.Errorf("%+v", p)
	}
	s := c.status(a)
	if h := s.Tunnel.Handshakes; h["completed"]+h["responded"] == 0 || s.Tunnel.WireGuardPort != 51820 {
		t.Errorf("%+v", s.Tunnel)
	}
}

// A key that is lost is not replaced by one that contradicts the list.
func TestLostKeyIsNotReplaced(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.encrypted()
	a := c.nodes[0]
	c.ok(os.Remove(a.KeyFile()))
	c.refused(a, a.PublicKey.String(), a.KeyFile(), "warren key new")
	if _, err := os.Stat(a.KeyFile()); !os.IsNotExist(err) {
		t.Errorf("a key was made: %v", err)
	}
}
