package cni_test

import (
	"strings"
	"testing"

	"github.com/warren-net/warren/cni"
)

// An address goes to another pod with another hardware address than its last holder had: who knew that knows the new
// one when ADD returns, by IPv4 and by IPv6, also while the kernel notices carriers late.
func TestAddressChangesHardware(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.0.0", cni.ModeBridge)
	other := n.pod(conf)
	other.add()
	busyLinks(t)
	for i := range 6 {
		mac := []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"}[i%2]
		p := n.pod(strings.TrimSuffix(conf, "}") + `, "runtimeConfig": {"mac": "` + mac +
			`", "ips": ["10.244.1.50", "fd00:10:244:1::50"]}}`)
		for _, addr := range p.add().addrs() {
			known := sh(t, other.ns, "ip neigh show "+addr.String()+" dev eth0")
			if i > 0 && !strings.Contains(known, mac) {
				t.Errorf("%s is %s, but another pod knows %q", addr, mac, known)
			}
			sh(t, other.ns, "ping -c 3 -i 0.2 -W 2 "+addr.String())
		}
		p.del()
	}
}
