package node_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// TestPods asks for a pod with traffic, and compares with what the pod's own interface counted.
func TestPods(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, "a")
			a := c.nodes[0]
			c.ok(a.Up(c.ctx))
			if pods := ask[[]api.Pod](c, a, "pods"); pods == nil || len(pods) != 0 {
				t.Errorf("without a pod: %+v", pods)
			}
			o := lab.PodOptions{Mode: mode}
			before := time.Now().Truncate(time.Second)
			busy, err := a.AddPod(c.ctx, "busy", o)
			c.ok(err)
			quiet, err := a.AddPod(c.ctx, "quiet", o)
			c.ok(err)
			const datagrams, size = 200, 1000
			c.ok(busy.NS.Do(func() error { return send(netip.AddrPortFrom(quiet.V4, 9), datagrams, size) }))
			c.eventually(func() error {
				got := map[string]api.Pod{}
				for _, p := range ask[[]api.Pod](c, a, "pods") {
					got[p.Name] = p
				}
				if len(got) != 2 {
					return fmt.Errorf("%d pods: %+v", len(got), got)
				}
				for _, pod := range []*lab.Pod{busy, quiet} {
					if err := counted(pod, got[pod.Name]); err != nil {
						return err
					}
				}
				b, q := got["busy"], got["quiet"]
				if b.TxBytes < datagrams*size || q.RxBytes < datagrams*size || b.RxBytes > b.TxBytes/2 {
					return fmt.Errorf("busy %+v\nquiet %+v", b, q)
				}
				return nil
			})
			p := ask[[]api.Pod](c, a, "pods")[0]
			if p.Namespace != "demo" || p.Mode != mode || p.Interface != "eth0" || p.Since.Before(before) ||
				p.Since.After(time.Now()) || p.Problem != "" {
				t.Errorf("%+v", p)
			}
			out, err := a.Warren(c.ctx, "pods")
			c.ok(err)
			for _, want := range []string{"demo/busy ", busy.V4.String() + "," + busy.V6.String(), "TX BYTES",
				p.Since.Format(time.RFC3339)} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}

// send sends so many datagrams, to whom nobody listens.
func send(to netip.AddrPort, datagrams, size int) error {
	conn, err := net.ListenUDP("udp4", nil) // not connected: the answers that nobody listens are no errors
	if err != nil {
		return err
	}
	defer conn.Close()
	for range datagrams {
		if _, err := conn.WriteToUDPAddrPort(make([]byte, size), to); err != nil {
			return err
		}
	}
	return nil
}

// counted compares an answer with the pod's own interface.
func counted(pod *lab.Pod, p api.Pod) error {
	var s *netlink.LinkStatistics
	if err := pod.NS.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			s = link.Attrs().Statistics
		}
		return err
	}); err != nil {
		return err
	}
	if p.TxBytes != s.TxBytes || p.RxBytes != s.RxBytes || p.TxPackets != s.TxPackets || p.RxPackets != s.RxPackets {
		return fmt.Errorf("%s: the pod counts %d packets, %d bytes sent and %d, %d received, the answer is %+v",
			pod.Name, s.TxPackets, s.TxBytes, s.RxPackets, s.RxBytes, p)
	}
	return nil
}

// TestPodsWithProblems: a record that is torn and an interface that somebody removed are named, and hide no pod.
func TestPodsWithProblems(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	for _, name := range []string{"good", "torn", "cut"} {
		_, err := a.AddPod(c.ctx, name, lab.PodOptions{})
		c.ok(err)
	}
	host := map[string]string{}
	for _, p := range ask[[]api.Pod](c, a, "pods") {
		host[p.Name] = p.HostInterface
	}
	c.ok(os.WriteFile(filepath.Join(podrecord.Dir(a.StateDir), host["torn"]+".json"), []byte(`{"containerID"`), 0o600))
	_, err := a.NS.Run(c.ctx, "ip", "link", "del", host["cut"])
	c.ok(err)
	pods := ask[[]api.Pod](c, a, "pods")
	if len(pods) != 3 {
		t.Fatalf("%+v", pods)
	}
	for _, p := range pods {
		want := map[string]string{host["good"]: "", host["torn"]: "is not what Warren writes",
			host["cut"]: "its host interface is not there"}[p.HostInterface]
		if (p.Problem == "") != (want == "") || !strings.Contains(p.Problem, want) {
			t.Errorf("%s: problem %q, want %q", p.HostInterface, p.Problem, want)
		}
	}
	out, err := a.Warren(c.ctx, "pods")
	c.ok(err)
	for _, want := range []string{"demo/good ", "demo/cut ", "\nproblem  " + host["torn"] + ": "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
