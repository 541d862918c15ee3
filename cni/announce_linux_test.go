package cni_test

import (
	"strings"
	"testing"

	"github.com/warren-net/warren/cni"
)

// An address goes to another pod with another hardware address than its last holder had: who knew that learns the new
// one before ADD returns, by IPv4 and by IPv6.
func TestAddressChangesHardware(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.0.0", cni.ModeBridge)
	other := n.pod(conf)
	other.add()
	for _, mac := range []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b", ""} {
		p := n.pod(strings.TrimSuffix(conf, "}") + `, "runtimeConfig": {"mac": "` + mac +
			`", "ips": ["10.244.1.50", "fd00:10:244:1::50"]}}`)
		for _, addr := range p.add().addrs() {
			ping(t, other.ns, addr)
			ping(t, n.ns, addr)
		}
		p.del()
	}
}
