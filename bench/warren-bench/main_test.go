package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func parsed(t *testing.T, env map[string]string, args ...string) options {
	t.Helper()
	o, err := parse(args, func(k string) string { return env[k] }, io.Discard)
	if err != nil {
		t.Fatalf("%v with %v: %v", args, env, err)
	}
	return o
}

func TestParse(t *testing.T) {
	o := parsed(t, nil)
	if got := names(o.config.Systems); !slices.Contains(got, "tinc") || o.config.CongestionControl != "" {
		t.Errorf("without anything: systems %v, %s", got, o.config.CongestionControl)
	}
	if len(o.config.Systems) < 6 || len(o.config.Wires) != 2 || len(o.config.Scenarios) < 5 || o.config.Rounds != 3 ||
		o.config.Time != 0 || o.config.MTU != 1500 || o.out != "bench/out" {
		t.Errorf("without anything: %+v", o)
	}
	o = parsed(t, map[string]string{"QUICK": "1"})
	if !slices.Equal(o.config.Scenarios, []string{"tcp-1", "tcp-4"}) || o.config.Time != 3*time.Second ||
		slices.Contains(names(o.config.Systems), "tinc") || len(o.config.Systems) < 6 ||
		!slices.Contains(names(o.config.Systems), "warren-wireguard") {
		t.Errorf("QUICK=1: %+v", o)
	}
	o = parsed(t, map[string]string{"QUICK": "0", "SYSTEMS": "nebula veth", "WIRES": "segmented", "ROUNDS": "7",
		"SCENARIOS": "rtt-idle", "MTU": "9000", "CC": "bbr"}, "-rounds", "5")
	if got := names(o.config.Systems); !slices.Equal(got, []string{"veth", "nebula"}) {
		t.Errorf("systems %v", got)
	}
	if o.config.Rounds != 5 || o.config.MTU != 9000 || o.config.CongestionControl != "bbr" ||
		!slices.Equal(o.config.Wires, []string{"segmented"}) ||
		!slices.Equal(o.config.Scenarios, []string{"rtt-idle"}) {
		t.Errorf("selection: %+v", o.config)
	}
}

// TestQuickIsQuick holds that a quick run ends within its six minutes, by what a measurement and bringing up take.
func TestQuickIsQuick(t *testing.T) {
	quick, err := parsed(t, map[string]string{"QUICK": "1"}).config.Estimate()
	if err != nil || quick > 6*time.Minute || quick < time.Minute {
		t.Errorf("QUICK=1 takes about %v (%v), want at most 6 minutes", quick, err)
	}
	whole, err := parsed(t, nil).config.Estimate()
	if err != nil || whole < 5*quick {
		t.Errorf("a whole run takes about %v (%v), a quick one %v", whole, err, quick)
	}
}

// TestNeeds holds that nothing is installed for a system that takes no part.
func TestNeeds(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{nil, "wg:wireguard-tools tincd:tinc"},
		{map[string]string{"SCENARIOS": "tcp-1"}, "wg:wireguard-tools tincd:tinc"},
		{map[string]string{"SCENARIOS": "tcp-1,cni", "SYSTEMS": "tinc"}, "tincd:tinc"},
		{map[string]string{"QUICK": "1"}, "wg:wireguard-tools"},
		{map[string]string{"SCENARIOS": "cni"}, ""},
		{map[string]string{"SCENARIOS": "cni same-node"}, ""},
		{map[string]string{"SYSTEMS": "veth,warren-vxlan"}, ""},
		{map[string]string{"TINCD": "/opt/tincd"}, "wg:wireguard-tools"},
		{map[string]string{"WIREGUARD_GO": "/opt/wireguard-go", "SYSTEMS": "wireguard-go"}, "wg:wireguard-tools"},
	} {
		needs, err := parsed(t, c.env).config.Needs()
		if got := strings.Join(needs, " "); err != nil || got != c.want {
			t.Errorf("%v needs %q, %v, want %q", c.env, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"-systems=cisco", "cisco"}, {"-wires=copper", "copper"}, {"-rounds=many", "many"}, {"-duration=5", "5"},
		{"-mtu=x", "x"},
		{"-rounds=0", "ROUNDS"}, {"-mtu=1351", "from 1352"}, {"-mtu=65536", "MTU"}, {"-duration=-1s", "-1s"},
		{"surprise", "surprise"}, {"-nonsense", "nonsense"},
	} {
		_, err := parse([]string{c.arg}, func(string) string { return "" }, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.arg, err, c.want)
		}
	}
}
