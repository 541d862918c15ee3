package cni_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// Whether a bridge is Warren's is read from the bridge when the file that says so can't be read, or is lost.
func TestBrokenBridgeState(t *testing.T) {
	for _, harm := range []string{"", `{"created":tr`, "lost"} {
		t.Run("harm "+harm, func(t *testing.T) {
			n := newNode(t)
			n.warm(cni.ModeBridge)
			before := n.dump()
			conf := n.conf("1.1.0", cni.ModeBridge)
			p, q := n.pod(conf), n.pod(conf)
			do := func() {
				if harm == "lost" {
					sh(t, "", "rm "+n.bridgeFile(cni.DefaultBridge))
				} else {
					spoil(t, harm, n.bridgeFile(cni.DefaultBridge))
				}
			}
			p.add()
			do()
			p.del()
			unchanged(t, "DEL", before, n.dump())

			p.add()
			do()
			n.must(n.gc(cni.ModeBridge, noAttachments))
			unchanged(t, "GC", before, n.dump())
			p.del()

			p.add()
			q.add()
			do()
			p.del()
			ping(t, q.ns, n.file.Gateways[0])
			p.add()
			if state, err := os.ReadFile(n.bridgeFile(cni.DefaultBridge)); err != nil ||
				!strings.Contains(string(state), `"created":true`) {
				t.Errorf("after another ADD the state is %q (%v)", state, err)
			}
			q.del()
			p.del()
			unchanged(t, "two pods", before, n.dump())
		})
	}
}

// The uplink of a bridge that Warren made is given back as it was, also when only the bridge says which it is.
func TestBrokenBridgeStateWithUplink(t *testing.T) {
	for _, harm := range []string{"", "lost", "all lost"} {
		t.Run("harm "+harm, func(t *testing.T) {
			n := uplinked(t)[0]
			n.warm(cni.ModeBridge)
			for _, was := range []string{"up", "down"} {
				sh(t, n.ns, "ip link set up0 "+was)
				before, link := n.dump(), n.uplink()
				n.confMore = acrossNodes
				p, q := n.pod(n.conf("1.1.0", cni.ModeBridge)), n.pod(n.conf("1.1.0", cni.ModeBridge))
				p.add()
				q.add()
				switch harm {
				case "":
					spoil(t, harm, n.bridgeFile(cni.DefaultBridge))
				case "lost":
					sh(t, "", "rm "+n.bridgeFile(cni.DefaultBridge))
				default:
					sh(t, "", "rm -r "+n.state())
				}
				p.del()
				if now := n.uplink(); !strings.Contains(now, "master "+cni.DefaultBridge) {
					t.Errorf("DEL of one of two pods took the uplink: %s", now)
				}
				q.del()
				if now := n.uplink(); now != link {
					t.Errorf("the uplink is %s, was %s", now, link)
				}
				unchanged(t, "an uplink that was "+was, before, n.dump())
			}
		})
	}
}

// Of a bridge that an operator made nothing is known without the file: it stays, and so does what it has.
func TestBrokenStateOfPreparedBridge(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "bridge": "br-mine"`
	sh(t, n.ns, "ip link add br-mine type bridge && ip link set br-mine addrgenmode none up "+
		"alias 'warren pod bridges of mine' && ip addr add 192.0.2.1/24 dev br-mine")
	p := n.pod(n.conf("1.1.0", cni.ModeBridge))
	p.add()
	spoil(t, "{", n.bridgeFile("br-mine"))
	p.del()
	if addrs := sh(t, n.ns, "ip addr show br-mine"); !strings.Contains(addrs, "192.0.2.1/24") {
		t.Errorf("the operator's bridge has lost its address:\n%s", addrs)
	}
	if exists(n.bridgeFile("br-mine")) {
		t.Error("the file that can't be read stays")
	}
	p.add()
	p.del()
}

// A bridge is one of pods as long as pods are on it: what else comes in by it, the firewall looks at as others'.
func TestBridgeIsListedForPods(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "bridge": "br-mine"`
	sh(t, n.ns, "ip link add br-mine type bridge && ip link set br-mine addrgenmode none up && "+
		"ip addr add 10.244.1.1/24 dev br-mine && ip addr add fd00:10:244:1::1/64 dev br-mine nodad")
	p, q := n.pod(n.conf("1.1.0", cni.ModeBridge)), n.pod(n.conf("1.1.0", cni.ModeBridge))
	check := func(when string, want bool) {
		t.Helper()
		out := sh(t, n.ns, "nft list set inet warren bridges")
		if strings.Contains(out, `"br-mine"`) != want {
			t.Errorf("%s: the bridge is listed: %v", when, !want)
		}
	}
	p.add()
	q.add()
	p.del()
	check("DEL of one of two pods", true)
	q.del()
	check("DEL of the last pod", false)
	p.add()
	check("another pod", true)
	sh(t, "", "rm -r "+n.state())
	q.add()
	q.del()
	check("DEL beside a pod whose record is lost", true)
	sh(t, "", "rm -r "+n.state())
	n.must(n.gc(cni.ModeBridge, noAttachments))
	check("GC after the state was lost", false)
	p.add()
	sh(t, n.ns, "ip link del br-mine")
	p.del()
	check("DEL after the bridge was removed", false)
}

// Pods come onto a bridge as the last ones leave it.
func TestBridgeIsListedForWhoComes(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "bridge": "br-mine"`
	sh(t, n.ns, "ip link add br-mine type bridge && ip link set br-mine addrgenmode none up && "+
		"ip addr add 10.244.1.1/24 dev br-mine && ip addr add fd00:10:244:1::1/64 dev br-mine nodad")
	var pods sync.WaitGroup
	for range 3 {
		p := n.pod(n.conf("1.1.0", cni.ModeBridge))
		pods.Go(func() {
			for range 10 {
				_, err := n.do(p.call("ADD"))
				out, listErr := try(n.ns, "nft list set inet warren bridges")
				if err != nil || listErr != nil || !strings.Contains(out, `"br-mine"`) {
					t.Errorf("after ADD (%v, %v) the set is\n%s", err, listErr, out)
				}
				if _, err := n.do(p.call("DEL")); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
		})
	}
	pods.Wait()
	if out := sh(t, n.ns, "nft list set inet warren bridges"); strings.Contains(out, "br-mine") {
		t.Errorf("after the last DEL the set is\n%s", out)
	}
}

// The state directory is lost while pods live, and all that comes are their DELs, or one GC.
func TestLostState(t *testing.T) {
	for _, mode := range modes {
		for _, lost := range []string{"state", "state/cni", "state/cni/pods"} {
			t.Run(mode+" "+lost, func(t *testing.T) {
				n := newNode(t)
				n.warm(mode)
				conf := n.conf("1.1.0", mode)
				before := n.dump()
				p, q := n.pod(conf), n.pod(conf)
				lose := func() {
					p.add()
					q.add()
					sh(t, "", "rm -r "+filepath.Join(n.dir, lost))
				}
				lose()
				p.del()
				ping(t, q.ns, n.file.Gateways[0])
				if out := sh(t, n.ns, "nft list chain inet warren outgoing"); !strings.Contains(out, "masquerade") {
					t.Error("one of two pods left, and nothing is translated")
				}
				q.del()
				unchanged(t, "after the second DEL", before, n.dump())

				lose()
				n.must(n.gc(mode, noAttachments))
				unchanged(t, "after GC", before, n.dump())

				lose()
				late := n.pod(conf)
				late.id = "late"
				if lost == "state/cni/pods" { // else ADD meets addresses of pods that have no record, see below
					late.add()
					late.del()
					ping(t, q.ns, n.file.Gateways[0])
				}
				q.del()
				p.del()
				unchanged(t, "after a late pod", before, n.dump())
			})
		}
	}
}

// The state directory is lost while a pod lives: nobody else gets its addresses.
func TestAddressOfALostPod(t *testing.T) {
	for _, tt := range []struct{ mode, unlist string }{
		{cni.ModeRouted, "true"}, {cni.ModeBridge, "true"}, {cni.ModeRouted, "nft flush ruleset"},
	} {
		t.Run(tt.mode+" "+tt.unlist, func(t *testing.T) {
			n := newNode(t)
			n.warm(tt.mode)
			before := n.dump()
			p, q := n.pod(n.conf("1.1.0", tt.mode)), n.pod(n.conf("1.1.0", tt.mode))
			has := p.add().addrs()
			sh(t, n.ns, tt.unlist)
			sh(t, "", "rm -r "+n.state())
			still := func() {
				if tt.unlist == "true" { // else the source check has forgotten it
					ping(t, p.ns, n.file.Gateways[0])
				}
			}
			name := podrecord.HostIfName(p.id, "eth0")
			want := "address " + has[0].String() + " belongs to the pod behind interface " + name +
				" (warren pod: pods shop/" + p.ns + " eth0), whose record is lost: delete that pod first"
			q.args += ";IP=" + has[0].String()
			if _, err := n.do(q.call("ADD")); err == nil || err.Code != types.ErrTryAgainLater || err.Msg != want {
				t.Errorf("ADD with the address of a living pod: %v\nwant %s", err, want)
			}
			still()
			// Their turn comes, after those of the pod before it, and who asks again gets the next ones.
			sh(t, "", "rm -r "+n.state())
			first := n.pod(n.conf("1.1.0", tt.mode))
			first.add()
			q = n.pod(n.conf("1.1.0", tt.mode))
			if _, err := n.do(q.call("ADD")); err == nil || err.Msg != want {
				t.Errorf("ADD whose turn it is: %v", err)
			}
			if now := q.add().addrs(); slices.ContainsFunc(now, func(a netip.Addr) bool { return slices.Contains(has, a) }) {
				t.Errorf("another pod has %v, and the one whose record is lost %v", now, has)
			}
			first.del()
			still()
			q.del()
			p.del()
			n.warm(tt.mode)
			unchanged(t, "after all", before, n.dump())
		})
	}
}

// The state directory outlives a reboot, and so tells of a bridge that is gone: what the operator's start gave to the
// one of the same name now is the operator's.
func TestBridgeOfAnotherBoot(t *testing.T) {
	for _, harm := range []string{"another boot", "another bridge"} {
		t.Run(harm, func(t *testing.T) {
			n := uplinked(t)[0]
			n.confMore = acrossNodes
			for _, name := range []string{"br-mine", cni.DefaultBridge} {
				prepared := name == "br-mine"
				make := "ip link add " + name + " type bridge && ip link set " + name + " addrgenmode none up && "
				if prepared {
					n.confMore = acrossNodes + `, "bridge": "br-mine"`
					sh(t, n.ns, make+"true")
				} else {
					n.confMore = acrossNodes
				}
				p, q := n.pod(n.conf("1.1.0", cni.ModeBridge)), n.pod(n.conf("1.1.0", cni.ModeBridge))
				p.add()
				state, err := os.ReadFile(n.bridgeFile(name))
				if err != nil {
					t.Fatal(err)
				}
				// The reboot. Its bridge may by chance have the index that the other had, which has to be set by hand here.
				index := regexp.MustCompile(`"index":\d+`)
				sh(t, n.ns, "ip link del "+podrecord.HostIfName(p.id, "eth0")+"; ip link del "+name+" && "+make+
					"ip addr add 10.244.1.1/24 dev "+name+" && ip addr add fd00:10:244:1::1/64 dev "+name+" nodad && "+
					"ip link set up0 master "+name+" up")
				if harm == "another boot" {
					now := strings.TrimSpace(sh(t, n.ns, "ip -o link show "+name+" | cut -d: -f1"))
					boot := strings.TrimSpace(sh(t, "", "cat /proc/sys/kernel/random/boot_id"))
					state = index.ReplaceAll(state, []byte(`"index":`+now))
					state = bytes.ReplaceAll(state, []byte(boot), []byte("3d3e6ea6-4ba5-4b34-8f2b-5b9b0f1a2c3d"))
				}
				spoil(t, string(state), n.bridgeFile(name))
				look := func() string {
					now := sh(t, n.ns, "ip -br link show "+name+"; ip -br addr show "+name)
					return volatile().ReplaceAllString(now, "") + n.uplink()
				}
				before := look()
				p.del()
				unchanged(t, "DEL", before, look())
				if exists(n.bridgeFile(name)) {
					t.Errorf("the state of another bridge stays")
				}
				if err := os.WriteFile(n.bridgeFile(name), state, 0o600); err != nil {
					t.Fatal(err)
				}
				q.add()
				ping(t, q.ns, n.file.Gateways[0])
				q.del()
				unchanged(t, "ADD and DEL", before, look())
				sh(t, n.ns, "ip link set up0 nomaster; ip link del "+name)
			}
		})
	}
}
