package hostnet

import (
	"net/netip"
	"strings"
	"testing"
)

// TestMasqueradeComesAndGoesWithThePods holds that a node without pods has no translation, that the plugin makes the
// very chain that the daemon would, and that switching it off removes it.
func TestMasqueradeComesAndGoesWithThePods(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	there := func() bool { return strings.Contains(w.run("nft list ruleset"), "masquerade") }
	w.apply(testSpec())
	if there() {
		t.Error("without a pod there is a translation")
	}
	w.run("ip link add wrn00000000001 type bridge")
	m := testSpec().masquerade()
	pod := Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4)}, Masquerade: &m}
	w.must(EnsurePod(pod))
	if !there() {
		t.Fatal("a pod came, and no translation")
	}
	// The daemon knows the pod, or not yet.
	known := testSpec()
	known.Pods = []Pod{pod}
	for _, s := range []Spec{known, testSpec()} {
		if c := w.apply(s); len(c.Made) > 0 || !there() {
			t.Errorf("the daemon would have it otherwise: %q", c.Made)
		}
	}
	w.must(RemovePod("wrn00000000001"))
	w.must(RemoveMasquerade())
	w.must(RemoveMasquerade())
	if there() {
		t.Error("the last pod left, and the translation stays")
	}
	if c := w.apply(testSpec()); len(c.Made) > 0 || there() {
		t.Errorf("without pods the daemon made %q", c.Made)
	}
	w.apply(known)
	if !there() {
		t.Error("the daemon does not put back what a pod needs")
	}
	w.must(EnsureMasquerade(m))
	known.Masquerade = false
	w.apply(known)
	if there() {
		t.Error("switched off, it stays")
	}
	w.run("nft delete table inet warren")
	w.must(RemoveMasquerade())
	w.must(EnsureMasquerade(m))
	if !there() {
		t.Error("not made without the table")
	}
}
