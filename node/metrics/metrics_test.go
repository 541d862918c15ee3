package metrics

import (
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/warren-net/warren/node/api"
)

type fake struct{}

func (fake) Status() api.Status {
	return api.Status{
		Node: "a", Version: "v1", Tunnel: api.Tunnel{
			Encapsulation: "vxlan",
			Underlay:      []api.Underlay{{Address: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500}},
		},
		Device:   api.Device{MTU: 1420},
		Offloads: []api.Offload{{Name: "tun-tso", Enabled: true}, {Name: "udp-gso", Reason: "configuration"}},
		Workers: []api.Worker{
			{ID: 0, TxSegments: 5, TxSuperpackets: 2, TxBytes: 100, RxSegments: 1, Wakeups: 9, ICMPSent: 1},
			{ID: 1, TxSegments: 7, TxSuperpackets: 3, TxBytes: 50, RxSegments: 2, Wakeups: 4, Pauses: 3, LanesGiven: 8,
				FlowsMoved: 6, ICMPSent: 1},
		},
		Snapshot:   api.Snapshot{Generation: 3, Peers: 1, Routes: 9},
		LastReload: &api.Reload{Time: time.Unix(100, 0), Error: "bad"},
		Warnings:   []string{"w"},
	}
}

func (fake) Peers() []api.Peer {
	seen := time.Unix(50, 0)
	return []api.Peer{{Name: "b", TxPackets: 12, RxBytes: 8, MTU: 1420, LastSeen: &seen}, {Name: "c"}}
}
func (fake) Routes() []api.Route      { return nil }
func (fake) Pods() ([]api.Pod, error) { return nil, nil }
func (fake) Drops() []api.Drop {
	return []api.Drop{{Reason: "no-route", Count: 4}, {Reason: "wrong-vni"}}
}

func TestHandler(t *testing.T) {
	h, err := Handler(fake{})
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	body := rec.Body.String()
	for _, line := range []string{
		`warren_info{encapsulation="vxlan",node="a",version="v1"} 1`,
		`warren_packets_total{direction="tx"} 12`,
		`warren_packets_total{direction="rx"} 3`,
		`warren_bytes_total{direction="tx"} 150`,
		`warren_superpackets_total{direction="tx"} 5`,
		`warren_wakeups_total{worker="1"} 4`,
		`warren_pauses_total{worker="1"} 3`,
		`warren_lanes_given_total{worker="1"} 8`,
		`warren_flows_moved_total{worker="1"} 6`,
		`warren_drops_total{reason="no-route"} 4`,
		`warren_drops_total{reason="wrong-vni"} 0`,
		`warren_icmp_sent_total 2`,
		`warren_offload_enabled{offload="tun-tso"} 1`,
		`warren_offload_enabled{offload="udp-gso"} 0`,
		`warren_snapshot_generation 3`,
		`warren_peers 1`,
		`warren_underlay_mtu_bytes{address="192.0.2.1",device="eth0"} 1500`,
		`warren_last_reload_successful 0`,
		`warren_last_reload_timestamp_seconds 100`,
		`warren_peer_packets_total{direction="tx",peer="b"} 12`,
		`warren_peer_last_seen_timestamp_seconds{peer="b"} 50`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(body, `last_seen_timestamp_seconds{peer="c"}`) {
		t.Error("a peer that was never seen has a time")
	}
}

// odd is a node whose underlay device has a name that is no text.
type odd struct{ fake }

func (odd) Status() api.Status {
	s := fake{}.Status()
	s.Tunnel.Underlay = []api.Underlay{{Address: netip.MustParseAddr("192.0.2.1"), Device: "eth\xff", MTU: 1500}}
	return s
}

func TestNameThatIsNoText(t *testing.T) {
	if _, err := testutil.CollectAndLint(newCollector(odd{})); err != nil {
		t.Error(err)
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(newCollector(fake{}))
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(newCollector(fake{})); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}

func TestListenInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "is in use by another program") {
		t.Error(err)
	}
	if _, err := Listen("192.0.2.77:0"); err == nil || !strings.Contains(err.Error(), "this host has no address") {
		t.Error(err)
	}
}
