package bench

import (
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
)

func TestCheckCarried(t *testing.T) {
	b := &Bed{Nodes: [2]*lab.Node{{Name: "a"}, {Name: "b"}}, MTU: 1500}
	tunnel, direct := &Path{Devices: sameDevice("warren0")}, &Path{}
	const payload = 1_000_000
	all := devStats{rxBytes: payload, rxPackets: 1000, txBytes: payload, txPackets: 1000}
	node := func() map[string]devStats { return map[string]devStats{wireDevice: all, "warren0": all} }
	full := counters{devices: [2]map[string]devStats{node(), node()}}
	with := func(on int, device string, change func(*devStats)) counters {
		c := counters{devices: [2]map[string]devStats{node(), node()}}
		d := c.devices[on][device]
		change(&d)
		c.devices[on][device] = d
		return c
	}
	for name, c := range map[string]struct {
		path  *Path
		wire  string
		moved counters
		want  string // in the error; empty: none
	}{
		"all moved": {tunnel, WireSegmented, full, ""},
		"no device": {direct, WireOffload, with(0, "warren0", func(d *devStats) { *d = devStats{} }), ""},
		"past the device, out": {tunnel, WireOffload,
			with(0, "warren0", func(d *devStats) { d.txBytes = 100 }), "warren0 of node a"},
		"past the device, in": {tunnel, WireOffload,
			with(1, "warren0", func(d *devStats) { d.rxBytes = 100 }), "warren0 of node b"},
		"past the wire, out": {tunnel, WireOffload,
			with(0, wireDevice, func(d *devStats) { d.txBytes = 0 }), "eth0 of node a"},
		"past the wire, in": {direct, WireOffload,
			with(1, wireDevice, func(d *devStats) { d.rxBytes = 0 }), "eth0 of node b"},
		"superpackets": {tunnel, WireOffload, with(0, wireDevice, func(d *devStats) { d.txPackets = 20 }), ""},
		"superpackets on the segmented wire": {tunnel, WireSegmented,
			with(0, wireDevice, func(d *devStats) { d.txPackets = 20 }), "larger than its MTU"},
	} {
		err := checkCarried(b, c.path, c.wire, c.moved, delivery{0, payload})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if err := checkCarried(b, tunnel, WireOffload, full, delivery{0, 0}); err == nil {
		t.Error("nothing arrived, and the check passes")
	}
	back := with(1, "warren0", func(d *devStats) { d.txBytes = 100 })
	if err := checkCarried(b, tunnel, WireOffload, back, delivery{0, payload}); err != nil {
		t.Errorf("a device that sends nothing back: %v", err)
	}
	err := checkCarried(b, tunnel, WireOffload, back, delivery{0, payload}, delivery{1, payload})
	if err == nil || !strings.Contains(err.Error(), "warren0 of node b sent only 100") {
		t.Errorf("past the device on the way back: error %v", err)
	}
	large := with(1, wireDevice, func(d *devStats) { d.txPackets = 20 })
	if err := checkCarried(b, tunnel, WireSegmented, large, delivery{0, payload}); err == nil {
		t.Error("superpackets of the other node on the segmented wire pass")
	}
}

func TestCheckNear(t *testing.T) {
	b := &Bed{Nodes: [2]*lab.Node{{Name: "a"}, {Name: "b"}}, MTU: 1500}
	tunnel := &Path{Near: []Hop{{Device: "warren0", Sent: true}, {Device: "warren0"}}}
	direct := &Path{Near: []Hop{{Device: "pod0"}, {Device: "pod1", Sent: true}}}
	const payload = 1_000_000
	moved := func(stats map[string]devStats) counters { return counters{devices: [2]map[string]devStats{stats, nil}} }
	received, sent := devStats{rxBytes: payload}, devStats{txBytes: payload}
	for name, c := range map[string]struct {
		path  *Path
		moved counters
		want  string // in the error; empty: none
	}{
		"through the device": {tunnel, moved(map[string]devStats{
			"warren0": {rxBytes: payload, txBytes: payload}, wireDevice: {txBytes: 900}}), ""},
		"from pod to pod":  {direct, moved(map[string]devStats{"pod0": received, "pod1": sent}), ""},
		"past the device":  {tunnel, moved(map[string]devStats{"warren0": sent}), "warren0 of node a received only 0"},
		"from another pod": {direct, moved(map[string]devStats{"pod1": sent}), "pod0"},
		"over the wire": {direct, moved(map[string]devStats{
			"pod0": received, "pod1": sent, wireDevice: {rxBytes: payload}}), "crossed the wire"},
	} {
		err := checkNear(b, c.path, c.moved, payload)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if err := checkNear(b, direct, moved(nil), 0); err == nil {
		t.Error("nothing arrived, and the check passes")
	}
}
