package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

const planConfig = `node: a
encapsulation: vxlan
cluster: [10.244.0.0/16, "fd00:10:244::/48"]
nodes:
  - {name: a, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
  - {name: four, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24]}
  - {name: six, addresses: ["2001:db8::3"], podCIDRs: [10.244.3.0/24, "fd00:10:244:3::/64"], port: 8472}
  - {name: kernel, addresses: [192.0.2.4], podCIDRs: [10.244.4.0/24], mac: "02:00:00:00:00:04"}
`

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newPlan(t testing.TB, text string) *plan {
	t.Helper()
	cfg, err := config.Parse(config.Source{File: "w.yaml", Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return &plan{
		cfg: cfg, podMTU: 1420, paths: pathLimits{}, secure: new(secure), workers: 2,
		numbers: new(numbers),
		underlay: []api.Underlay{
			{Address: addr("192.0.2.1"), Device: "eth0", MTU: 1500}, {Address: addr("2001:db8::1"), Device: "eth0", MTU: 1500},
		},
	}
}

func (p *plan) peer(t *testing.T, name string) (*forwarder.Peer, *outcome) {
	t.Helper()
	out, err := p.build(1, p.cfg.Peers(p.cfg.State))
	if err != nil {
		t.Fatal(err)
	}
	for peer := range out.snapshot.Peers() {
		if peer.Name == name {
			return peer, out
		}
	}
	t.Fatalf("no peer %s", name)
	return nil, nil
}

func TestPlanPeers(t *testing.T) {
	p := newPlan(t, planConfig)
	for _, c := range []struct {
		name, endpoint, mac string
	}{
		{"four", "192.0.2.2:4789", "0e:57:c0:00:02:02"},
		{"six", "[2001:db8::3]:8472", vxlan.MAC(addr("2001:db8::3")).String()},
		{"kernel", "192.0.2.4:4789", "02:00:00:00:00:04"},
	} {
		peer, _ := p.peer(t, c.name)
		mac, said := vxlan.Destination(peer.Header4).String(), p.allWarnings()
		if peer.Endpoint.String() != c.endpoint || mac != c.mac || peer.MTU != 1420 || len(said) > 0 {
			t.Errorf("%s: %v, %s, MTU %d, %v", c.name, peer.Endpoint, mac, peer.MTU, said)
		}
		dec := vxlan.Decoder{VNI: 1, MAC: [6]byte(peer.Header4[8:14])}
		if inner, drop := dec.Decode(append(append([]byte{}, peer.Header4...), 0x45,
			0)); drop != vxlan.Accepted || len(inner) != 2 {
			t.Errorf("%s: its header is refused: %v", c.name, drop)
		}
	}
}

// TestPlanClassifies looks at the snapshot from outside: what goes where.
func TestPlanClassifies(t *testing.T) {
	p := newPlan(t, planConfig)
	out, err := p.build(1, p.cfg.Peers(p.cfg.State))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		src, dst string
		verdict  forwarder.Verdict
	}{
		{"10.244.1.2", "10.244.3.9", forwarder.ToPeer},
		{"10.244.1.2", "192.0.2.2", forwarder.ToPeer}, // a peer's own address
		{"10.244.1.2", "10.244.1.3", forwarder.Local},
		{"10.244.1.2", "10.244.9.9", forwarder.Drop}, // of no node
		{"10.244.1.2", "203.0.113.5", forwarder.Kernel},
		{"10.244.2.2", "10.244.3.9", forwarder.Drop}, // a source that is not ours
	} {
		i := packet.Info{Version: 4, Src: addr(c.src), Dst: addr(c.dst), Len: 100}
		if d := out.snapshot.FromTUN(&i, packet.Meta{}); d.Verdict != c.verdict {
			t.Errorf("%s to %s: verdict %d, want %d", c.src, c.dst, d.Verdict, c.verdict)
		}
	}
}

func TestPlanMTU(t *testing.T) {
	for _, c := range []struct {
		name, peer string
		underlay   int // MTU of the underlay device
		path       int // path MTU; 0: unknown
		want       int
		warnings   []string // parts of the warnings, in order
	}{
		{"as promised", "four", 1500, 0, 1420, nil},
		{"wide", "four", 9000, 0, 1420, nil},
		{"just enough", "four", 1490, 0, 1420, nil},
		{"underlay narrow", "four", 1400, 0, 1350, []string{"(192.0.2.1) has MTU 1400, but pods with MTU 1420 need 1470",
			"(2001:db8::1) has MTU 1400"}},
		{"underlay narrow 6", "six", 1400, 0, 1330, []string{"192.0.2.1", "need 1490: pods are told"}},
		{"underlay below the least", "six", 1300, 0, 1230, []string{"192.0.2.1", "2001:db8::1",
			"carries packets of at most 1300 bytes, but 1350 are needed"}},
		{"IPv4 pods only", "four", 700, 0, 650, []string{"192.0.2.1", "2001:db8::1", "peer six"}},
		{"path narrow", "four", 1500, 1300, 1250,
			[]string{"the path to peer four (192.0.2.2) carries packets of at most 1300 bytes"}},
		{"path wider than the device", "four", 1400, 1450, 1350, []string{"192.0.2.1", "2001:db8::1"}},
		{"path absurd", "four", 1500, 100, 576, []string{"but 626 are needed"}},
		{"path below the least of IPv6", "six", 1500, 1310, 1240, []string{"but 1350 are needed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlan(t, planConfig)
			for i := range p.underlay {
				p.underlay[i].MTU = c.underlay
			}
			to := map[string]string{"four": "192.0.2.2", "six": "2001:db8::3"}[c.peer]
			if c.path > 0 {
				p.paths.note(addr(to), c.path, time.Now())
			}
			peer, _ := p.peer(t, c.peer)
			if peer.MTU != c.want {
				t.Errorf("MTU %d, want %d", peer.MTU, c.want)
			}
			if len(p.allWarnings()) != len(c.warnings) {
				t.Fatalf("warnings %q", p.allWarnings())
			}
			for i, part := range c.warnings {
				if !strings.Contains(p.allWarnings()[i], part) {
					t.Errorf("warning %q, want %q in it", p.allWarnings()[i], part)
				}
			}
		})
	}
}

func TestPlanUnderlayGone(t *testing.T) {
	p := newPlan(t, planConfig)
	p.underlay[0] = api.Underlay{Address: addr("192.0.2.1")}
	peer, _ := p.peer(t, "four")
	said := p.allWarnings()
	if peer.MTU != 1420 || len(said) != 1 || !strings.Contains(said[0], "192.0.2.1 is on no device") {
		t.Errorf("MTU %d, %q", peer.MTU, said)
	}
}

func TestPlanKeepsCounters(t *testing.T) {
	p := newPlan(t, planConfig)
	first, _ := p.peer(t, "four")
	first.Stats.Cell(1).TxPackets.Add(7)
	second, _ := p.peer(t, "four")
	if first == second || second.Stats.Totals().TxPackets != 7 {
		t.Error("the counters did not survive the snapshot")
	}
	p.cfg.State.Nodes = p.cfg.State.Nodes[:1]
	if _, err := p.build(2, p.cfg.Peers(p.cfg.State)); err != nil || len(p.peers) != 0 {
		t.Errorf("counters of nodes that are gone: %d, %v", len(p.peers), err)
	}
}

func TestPathLimits(t *testing.T) {
	p, a, now := pathLimits{}, addr("192.0.2.2"), time.Unix(0, 0)
	for _, c := range []struct {
		mtu  int
		news bool
		want int
	}{
		{0, false, 0}, {67, false, 0}, {-5, false, 0}, // made up
		{1400, true, 1400}, {1400, false, 1400},
		{1450, false, 1400}, // another of several routes
		{1300, true, 1300},
	} {
		if news := p.note(a, c.mtu, now); news != c.news || p[a].mtu != c.want {
			t.Errorf("%d: news %v, MTU %d", c.mtu, news, p[a].mtu)
		}
	}
	p.note(a, 1300, now.Add(time.Minute)) // heard again
	if p.expire(now.Add(pathMemory)) {
		t.Error("forgotten too early")
	}
	if !p.expire(now.Add(pathMemory+time.Minute)) || len(p) != 0 || p.expire(now.Add(time.Hour)) {
		t.Error("not forgotten")
	}
}

func TestPodMTU(t *testing.T) {
	p := newPlan(t, planConfig)
	for _, c := range []struct {
		configured, first, second, want int
		err                             string
	}{
		{0, 1500, 1500, 1420, ""}, {0, 1500, 1400, 1320, ""}, {0, 9000, 9000, 8920, ""}, {0, 65536, 65536, 65455, ""},
		{1300, 1500, 1500, 1300, ""}, {1400, 1300, 1300, 1400, ""}, // said by a warning, not refused
		{0, 1350, 1500, 0,
			"underlay device eth0 (192.0.2.1) has MTU 1350, which leaves the pods 1270 bytes, " +
				"below the least of 1280; raise it to 1360"},
	} {
		p.cfg.MTU, p.underlay[0].MTU, p.underlay[1].MTU = c.configured, c.first, c.second
		got, err := podMTU(p.cfg, p.underlay)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

// TestGSOMaxSize: the segments of the largest superpacket, with the tunnel's headers, fit one send, whatever headers
// the inner packets have.
func TestGSOMaxSize(t *testing.T) {
	for mtu := config.MinMTU4; mtu <= packet.MaxPacket; mtu += 7 {
		size := gsoMaxSize(mtu)
		if size < mtu && size < packet.MaxPacket || size > packet.MaxPacket {
			t.Fatalf("MTU %d: %d", mtu, size)
		}
		if mtu+vxlan.HeaderLen > tunnel.MaxSendBytes {
			continue // not even one segment fits; the underlay's MTU forbids it anyway
		}
		for _, header := range []int{40, 52, 60, 72} {
			payload := size - header
			segments := (payload + mtu - header - 1) / (mtu - header)
			wire := payload + segments*(header+vxlan.HeaderLen)
			if wire > tunnel.MaxSendBytes || segments > tunnel.MaxSendSegments {
				t.Fatalf("MTU %d, headers of %d bytes: a superpacket of %d bytes makes %d segments and %d bytes", mtu, header,
					size, segments, wire)
			}
		}
	}
}
