package cni_test

import (
	"encoding/json"
	"testing"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// link is what `ip -d -j link` says of an interface.
type link struct {
	IfName      string
	Flags       []string
	Promiscuity int
}

func linkOf(t *testing.T, ns, name string) link {
	t.Helper()
	var links []link
	out := sh(t, ns, "ip -d -j link show dev "+name)
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("ip link: %v\n%s", err, out)
	}
	return links[0]
}

// Nothing is set promiscuous: a pod's interface takes what is for the pod, the bridge what is for the node. Only the
// ports take everything, which is a bridge's own doing.
func TestPromiscuousOff(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			a, b := n.pod(n.conf("1.0.0", mode)), n.pod(n.conf("1.0.0", mode))
			a.add()
			b.add()
			portsOwn := 0
			where := map[string]string{"eth0": a.ns}
			if mode == cni.ModeBridge {
				portsOwn = 1
				where[cni.DefaultBridge] = n.ns
			}
			for name, ns := range where {
				if l := linkOf(t, ns, name); l.Promiscuity != 0 {
					t.Errorf("%s is promiscuous: %+v", name, l)
				}
			}
			for _, p := range []*pod{a, b} {
				l := linkOf(t, n.ns, podrecord.HostIfName(p.id, "eth0"))
				if l.Promiscuity != portsOwn {
					t.Errorf("promiscuity of %s is %d, want %d", l.IfName, l.Promiscuity, portsOwn)
				}
				for _, flag := range l.Flags {
					if flag == "PROMISC" { // set by somebody; a bridge's ports don't show it
						t.Errorf("%s: %v", l.IfName, l.Flags)
					}
				}
			}
		})
	}
}
