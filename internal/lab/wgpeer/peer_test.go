package wgpeer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
)

// A duo is two peers on two nodes of a lab. The first knows where the second is, and not the other way round.
type duo struct {
	t     *testing.T
	ctx   context.Context
	nodes [2]*lab.Node
	peers [2]*Peer
}

func newDuo(t *testing.T, family int) *duo {
	t.Helper()
	l := lab.ForTest(t, lab.Options{Prefix: "wgpeer"})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	program, version, err := Build(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(version, "v") {
		t.Errorf("wireguard-go is of version %q", version)
	}
	d := &duo{t: t, ctx: ctx}
	for i, name := range []string{"a", "b"} {
		if d.nodes[i], err = l.AddNode(name); err != nil {
			t.Fatal(err)
		}
		d.peers[i] = New(l, d.nodes[i].NS, Config{Name: "wireguard-go-" + name, Program: program,
			MTU: 1400, PrivateKey: key.NewPrivate(), Port: uint16(51820 + i), Addresses: d.addresses(i), Verbose: true})
	}
	for i, p := range d.peers {
		far := 1 - i
		p.Remotes = []Remote{{PublicKey: d.public(far), AllowedIPs: d.addresses(far)}}
	}
	d.peers[0].Remotes[0].Endpoint = d.endpoint(1, family)
	for _, p := range d.peers {
		d.ok(p.Up(ctx))
	}
	return d
}

func (d *duo) ok(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *duo) public(i int) key.Public { return d.peers[i].PrivateKey.Public() }

func (d *duo) endpoint(i, family int) netip.AddrPort {
	return netip.AddrPortFrom(d.nodes[i].Address(family), d.peers[i].Port)
}

// addresses are those of a peer inside the tunnel.
func (d *duo) addresses(i int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.255.%d/32", i+1)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:ff::%d/128", i+1)),
	}
}

func (d *duo) ping(from int) error {
	var errs []error
	for _, a := range d.addresses(1 - from) {
		_, err := d.nodes[from].NS.Ping(d.ctx, a.Addr(), lab.Ping{Count: 2})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// remote is what a peer says about the other.
func (d *duo) remote(i int) RemoteState {
	d.t.Helper()
	s, err := d.peers[i].State(d.ctx)
	d.ok(err)
	if s.PublicKey != d.public(i) || s.Port != d.peers[i].Port || len(s.Remotes) != 1 {
		d.t.Errorf("peer %d is %+v", i, s)
	}
	return s.Remotes[d.public(1-i)]
}

// TestPeers has two wireguard-go talk, over an underlay of either family, through what a peer of Warren's will meet as
// well: an unknown endpoint, a crash, other ports, and keys that fit and do not.
func TestPeers(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d underlay", family), func(t *testing.T) {
			d := newDuo(t, family)
			if r := d.remote(1); r.Endpoint.IsValid() || !r.Handshake.IsZero() || r.PresharedKey {
				t.Errorf("before the first packet: %+v", r)
			}
			d.ok(d.ping(0))
			r := d.remote(1)
			if r.Endpoint != d.endpoint(0, family) || time.Since(r.Handshake) > time.Minute || r.Received < 4*84 ||
				r.Sent < 4*84 {
				t.Errorf("after four pings: %+v", r)
			}

			d.ok(d.peers[1].Kill())
			if err := d.ping(0); err == nil {
				t.Error("a peer that was killed answers")
			}
			d.ok(d.peers[1].Up(d.ctx))
			// The first still has the old session, and takes 15 s to give it up; the second has no endpoint for it.
			d.ok(d.peers[1].Set(d.ctx, Remote{PublicKey: d.public(0), AllowedIPs: d.addresses(0),
				Endpoint: d.endpoint(0, family)}))
			d.ok(d.ping(1))

			d.ok(d.peers[0].SetPort(d.ctx, 51899))
			d.ok(d.ping(0))
			if r := d.remote(1); r.Endpoint != d.endpoint(0, family) {
				t.Errorf("the endpoint is %s, want port 51899", r.Endpoint)
			}
		})
	}
}

// flood is more than what wireguard-go wants between two handshakes with one remote (device.HandshakeInitationRate,
// 20 ms): it takes what comes sooner for an attack, and the next comes after 5 s.
const flood = 100 * time.Millisecond

// TestKeys changes keys of peers that run.
func TestKeys(t *testing.T) {
	d := newDuo(t, 4)
	d.ok(d.ping(0))
	to := d.peers[0].Remotes[0]
	from := d.peers[1].Remotes[0]
	// anew forgets the session, so that the next packet needs a handshake.
	anew := func() {
		t.Helper()
		d.ok(d.peers[0].Remove(d.ctx, to.PublicKey))
		time.Sleep(flood)
		d.ok(d.peers[0].Set(d.ctx, to))
	}
	to.PresharedKey = key.NewPreshared()
	anew()
	if err := d.ping(0); err == nil {
		t.Error("a preshared key at one side only")
	}
	from.PresharedKey = to.PresharedKey
	d.ok(d.peers[1].Set(d.ctx, from))
	anew()
	d.ok(d.ping(0))
	if r := d.remote(1); !r.PresharedKey {
		t.Errorf("%+v, want a preshared key", r)
	}
	from.PresharedKey, to.PresharedKey = key.Preshared{}, key.Preshared{}
	d.ok(d.peers[1].Set(d.ctx, from))
	anew()
	d.ok(d.ping(0))

	d.ok(d.peers[0].SetPrivateKey(d.ctx, key.NewPrivate()))
	if err := d.ping(0); err == nil {
		t.Error("a private key that the other peer does not know")
	}
	d.ok(d.peers[1].Set(d.ctx, Remote{PublicKey: d.public(0), AllowedIPs: from.AllowedIPs}))
	anew()
	d.ok(d.ping(0))
}

// TestNothingStays holds that a lab that is closed with peers in it leaves no socket, and that those of a process that
// was killed go when the next peer comes.
func TestNothingStays(t *testing.T) {
	lab.NeedRoot(t)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	stale := socketPath(fmt.Sprintf(deviceName, gone.Process.Pid, 0))
	if err := os.MkdirAll(socketDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("with peers", func(t *testing.T) {
		d := newDuo(t, 4)
		if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", stale, err)
		}
		d.ok(d.peers[1].Down(d.ctx))
	})
	left, err := filepath.Glob(socketPath(fmt.Sprintf("wl%d-*", os.Getpid())))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestParseDump(t *testing.T) {
	const a, b, c = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
		"TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
	s, err := parseDump("private\t" + a + "\t51820\toff\n" +
		b + "\t(none)\t[2001:db8::1]:51821\t10.244.1.0/24,fd00:10:244:1::/64\t1700000000\t10\t20\toff\n" +
		c + "\tpsk\t(none)\t(none)\t0\t0\t0\t25\n")
	if err != nil || s.PublicKey.String() != a || s.Port != 51820 || len(s.Remotes) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	keyOf := func(text string) key.Public {
		k, err := key.ParsePublic(text)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	want := RemoteState{Endpoint: netip.MustParseAddrPort("[2001:db8::1]:51821"), Handshake: time.Unix(1700000000, 0),
		Received: 10, Sent: 20}
	if r := s.Remotes[keyOf(b)]; r != want {
		t.Errorf("%+v, want %+v", r, want)
	}
	if r := s.Remotes[keyOf(c)]; r != (RemoteState{PresharedKey: true}) {
		t.Errorf("%+v, want a preshared key and nothing else", r)
	}
	for _, bad := range []string{"", "private\t" + a + "\toff\n", "private\tshort\t1\toff",
		"private\t" + a + "\tport\toff", "private\t" + a + "\t1\toff\n" + b, "private\t" + a + "\t1\toff\nkey\t\t\t\t\t\t\t",
		"private\t" + a + "\t1\toff\n" + b + "\t(none)\there\t\t0\t0\t0\toff",
		"private\t" + a + "\t1\toff\n" + b + "\t(none)\t(none)\t\tnow\t0\t0\toff",
		"private\t" + a + "\t1\toff\n" + b + "\t(none)\t(none)\t\t0\t-1\t0\toff"} {
		if s, err := parseDump(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, s)
		}
	}
}
