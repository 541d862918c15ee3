package node

import (
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/hostnet"
)

// TestOnlyTriedDrivers wants drivers that nobody tried to be left out, with the way to try them, and what is off
// already to keep its reason.
func TestOnlyTriedDrivers(t *testing.T) {
	egress := []hostnet.Egress{
		{Device: "eth0", Driver: "veth"}, {Device: "ens3", Driver: "virtio_net"}, {Device: "eno1", Driver: "ice"},
		{Device: "br0", Driver: "bridge", Why: "off"},
	}
	onlyTried(egress)
	if egress[0].Why+egress[1].Why != "" || egress[3].Why != "off" {
		t.Errorf("%+v", egress)
	}
	if why := egress[2].Why; !strings.Contains(why, "eno1 has the driver ice") || !strings.Contains(why, "tunnelGSO: on") {
		t.Errorf("reason %q", why)
	}
}
