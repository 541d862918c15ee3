package lab

import (
	"net/netip"
	"testing"
	"time"
)

// TestPingWaits has the last of three answers come a third of a second after the others.
func TestPingWaits(t *testing.T) {
	l := ForTest(t, Options{Prefix: "ping"})
	ctx := testContext(t)
	ns, err := l.AddNS("slow")
	if err != nil {
		t.Fatal(err)
	}
	// A ping takes 2 * 98 bytes: five of the six packets pass at once, and the last one when 250 bytes a second allow.
	_, err = ns.Run(ctx, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "2kbit", "burst", "500",
		"latency", "9s")
	if err != nil {
		t.Fatal(err)
	}
	rtt, err := ns.Ping(ctx, netip.MustParseAddr("127.0.0.1"), Ping{})
	if err != nil {
		t.Fatal(err)
	}
	if least := 50 * time.Millisecond; rtt < least {
		t.Errorf("the average is %v: no answer was late, so this test shows nothing", rtt)
	}
}
