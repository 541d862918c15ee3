package tun

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

// What is asked for falls back step by step to what a kernel takes.
func TestNegotiate(t *testing.T) {
	const all = unix.TUN_F_CSUM | offTSOECN | offUSO
	for _, c := range []struct {
		name          string
		kernel        int // the bits that it knows
		cfg           Config
		want          int // what is set in the end
		enabled       [3]bool
		takeTCP, take bool // TCP, UDP
	}{
		{"everything", all, Config{}, all, [3]bool{true, true, true}, true, true},
		{"no USO (before 6.2)", all &^ offUSO, Config{}, all &^ offUSO, [3]bool{true, true, false}, true, false},
		{"no ECN", all &^ unix.TUN_F_TSO_ECN, Config{}, all &^ unix.TUN_F_TSO_ECN, [3]bool{true, true, true}, true, true},
		{"no TSO", unix.TUN_F_CSUM | offUSO, Config{}, unix.TUN_F_CSUM | offUSO, [3]bool{true, false, true}, true, true},
		{"half of USO is none", all &^ unix.TUN_F_USO6, Config{}, all &^ offUSO, [3]bool{true, true, false}, true, false},
		{"nothing", 0, Config{}, 0, [3]bool{}, true, false},
		{"TSO off", all, Config{TSO: Off}, unix.TUN_F_CSUM | offUSO, [3]bool{true, false, true}, false, true},
		{"USO off", all, Config{USO: Off}, unix.TUN_F_CSUM | offTSOECN, [3]bool{true, true, false}, true, false},
		{"checksums off", all, Config{Checksum: Off}, 0, [3]bool{}, false, false},
		{"both off", all, Config{TSO: Off, USO: Off}, unix.TUN_F_CSUM, [3]bool{true, false, false}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := all // what an earlier process left
			o := negotiate(c.cfg, func(flags int) error {
				if flags&^c.kernel != 0 {
					return unix.EINVAL
				}
				state = flags
				return nil
			})
			if state != c.want {
				t.Errorf("device has %#x, want %#x", state, c.want)
			}
			for i, s := range o.states() {
				if s.Enabled != c.enabled[i] || s.Enabled != (s.Reason == "") {
					t.Errorf("%+v, want enabled %v", s, c.enabled[i])
				}
			}
			q := newQueue(-1, o)
			for typ, want := range map[packet.GSOType]bool{
				packet.GSONone: true, packet.GSOTCP4: c.takeTCP, packet.GSOTCP6: c.takeTCP, packet.GSOUDP: c.take,
				device.GSOUnknown: false,
			} {
				if q.Takes(typ) != want {
					t.Errorf("takes type %d: %v, want %v", typ, !want, want)
				}
			}
		})
	}
}

// A kernel that refuses superpackets in a row loses the type; one odd packet does not do that.
func TestRefusals(t *testing.T) {
	o := negotiate(Config{}, func(int) error { return nil })
	q := newQueue(-1, o)
	tcp := packet.Meta{Type: packet.GSOTCP4, SegmentSize: 1448}
	refuse := func(n int) {
		for range n {
			q.refused(tcp, device.Shape{Segments: 40})
		}
	}
	refuse(maxRefusals - 1)
	q.refusals[packet.GSOTCP4] = 0 // as a write that went well does
	refuse(maxRefusals - 1)
	if !q.Takes(packet.GSOTCP4) {
		t.Fatal("off before the limit")
	}
	refuse(1)
	if q.Takes(packet.GSOTCP4) || !q.Takes(packet.GSOTCP6) || !newQueue(-1, o).Takes(packet.GSOUDP) {
		t.Error("TCP over IPv4, and nothing else, should be off")
	}
	if s := o.states()[1]; s.Enabled || !strings.Contains(s.Reason, "1448") {
		t.Errorf("%+v, want tun-tso off with a reason", s)
	}
	for range 2 * maxRefusals { // more datagrams than kernels before 6.9 take
		q.refused(packet.Meta{Type: packet.GSOUDP}, device.Shape{Segments: oldMaxUDPSegments + 1})
	}
	if !q.Takes(packet.GSOUDP) {
		t.Error("USO is off because of a superpacket that an older kernel never takes")
	}
}

func TestProbePacketsAreGood(t *testing.T) {
	for _, p := range probes() {
		s, err := device.Inspect(p.meta, [][]byte{p.packet})
		if err != nil || s.Segments != 3 {
			t.Errorf("%s: %+v, %v; want 3 segments", p.name, s, err)
		}
		var i packet.Info
		if e := packet.Parse(p.packet, &i); e != packet.OK || int(i.Len) != len(p.packet) || !i.Dst.IsLoopback() {
			t.Errorf("%s: %+v, %v", p.name, i, e)
		}
	}
}

// A kernel that refuses the superpacket that is tried at start loses the type before a packet comes, and no other; one
// that says that the link is down would have taken it.
func TestProbeRefused(t *testing.T) {
	for _, refused := range probes() {
		t.Run(refused.name, func(t *testing.T) {
			o := negotiate(Config{}, func(int) error { return nil })
			err := o.tryWrites(func(p []byte) error {
				if bytes.Equal(p[vnetLen:], refused.packet) {
					return unix.EINVAL
				}
				return unix.EIO
			})
			if err != nil {
				t.Error(err)
			}
			q := newQueue(-1, o)
			for _, p := range probes() {
				if typ := p.meta.Type; q.Takes(typ) != (typ != refused.meta.Type) {
					t.Errorf("takes type %d: %v, after type %d was refused", typ, q.Takes(typ), refused.meta.Type)
				}
			}
			off := map[bool]int{false: 1, true: 2}[refused.meta.Type == packet.GSOUDP]
			for i, s := range o.states() {
				if s.Enabled == (i == off) || i == off && !strings.Contains(s.Reason, refused.name) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// Write hands back what a kernel refuses, to be cut, and after a few in a row does not try the type any more. The
// kernel's EINVAL is a real one: a timer can't be written to.
func TestWriteRefused(t *testing.T) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(fd, negotiate(Config{}, func(int) error { return nil }))
	defer func() { _ = q.Close() }()
	uso := probes()[2]
	for i := range maxRefusals {
		if !q.Takes(packet.GSOUDP) {
			t.Fatalf("off after %d refusals", i)
		}
		if err := q.Write(uso.meta, [][]byte{uso.packet}); !errors.Is(err, device.ErrNotTaken) {
			t.Fatalf("refusal %d: %v, want ErrNotTaken", i, err)
		}
	}
	if s := q.offloads.states(); q.Takes(packet.GSOUDP) || s[2].Enabled || !s[1].Enabled {
		t.Errorf("after %d refusals: %+v", maxRefusals, s)
	}
}
