package bench

import (
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
)

func TestCheckCarried(t *testing.T) {
	b := &Bed{Nodes: [2]*lab.Node{{Name: "a"}, {Name: "b"}}, MTU: 1500}
	tunnel, direct := &Path{Device: "warren0"}, &Path{}
	const payload = 1_000_000
	all := devStats{rxBytes: payload, rxPackets: 1000, txBytes: payload, txPackets: 1000}
	full := counters{wire: [2]devStats{all, all}, device: [2]devStats{all, all}}
	with := func(change func(*counters)) counters {
		c := full
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		path  *Path
		wire  string
		moved counters
		want  string // in the error; empty: none
	}{
		"all moved": {tunnel, WireSegmented, full, ""},
		"no device": {direct, WireOffload, with(func(c *counters) { c.device = [2]devStats{} }), ""},
		"past the device, out": {tunnel, WireOffload,
			with(func(c *counters) { c.device[0].txBytes = 100 }), "warren0 of node a"},
		"past the device, in": {tunnel, WireOffload,
			with(func(c *counters) { c.device[1].rxBytes = 100 }), "warren0 of node b"},
		"past the wire, out": {tunnel, WireOffload, with(func(c *counters) { c.wire[0].txBytes = 0 }), "eth0 of node a"},
		"past the wire, in":  {direct, WireOffload, with(func(c *counters) { c.wire[1].rxBytes = 0 }), "eth0 of node b"},
		"superpackets":       {tunnel, WireOffload, with(func(c *counters) { c.wire[0].txPackets = 20 }), ""},
		"superpackets on the segmented wire": {tunnel, WireSegmented,
			with(func(c *counters) { c.wire[0].txPackets = 20 }), "larger than its MTU"},
	} {
		err := checkCarried(b, c.path, c.wire, c.moved, payload)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if err := checkCarried(b, tunnel, WireOffload, full, 0); err == nil {
		t.Error("nothing arrived, and the check passes")
	}
}
