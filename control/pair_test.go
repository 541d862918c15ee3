package control_test

import (
	"testing"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
)

// TestPairs goes through all pairs of what two nodes may ask for.
func TestPairs(t *testing.T) {
	const (
		never, onLink, always = control.Never, control.OnLink, control.Always
		plain, encrypted      = false, true
	)
	nodes := map[string]control.Node{
		"laptop": {Roams: true}, "empty": {}, "wireguard": {Encapsulation: control.WireGuard},
		"vxlan": {Encapsulation: control.VXLAN}, "direct": {Encapsulation: control.Direct},
		"auto":           {Encapsulation: control.Auto},
		"keyless direct": {Encapsulation: control.Direct}, "keyless auto": {Encapsulation: control.Auto},
		"keyless vxlan": {Encapsulation: control.VXLAN},
	}
	for _, name := range []string{"laptop", "empty", "wireguard", "vxlan", "direct", "auto"} {
		n := nodes[name]
		n.PublicKey = key.NewPrivate().Public()
		nodes[name] = n
	}
	for _, k := range []struct {
		a, b   string
		direct control.Directness
		tunnel bool
	}{
		{"empty", "empty", never, encrypted},
		{"empty", "wireguard", never, encrypted},
		{"empty", "vxlan", never, plain},
		{"empty", "direct", never, encrypted},
		{"empty", "auto", never, encrypted},
		{"wireguard", "direct", never, encrypted},
		{"wireguard", "auto", never, encrypted},
		{"wireguard", "keyless direct", never, plain},
		{"wireguard", "keyless auto", never, plain},
		{"vxlan", "vxlan", never, plain},
		{"vxlan", "direct", never, plain},
		{"vxlan", "auto", never, plain},
		{"keyless vxlan", "auto", never, plain},
		{"direct", "direct", always, encrypted},
		{"direct", "keyless direct", always, plain},
		{"keyless direct", "keyless direct", always, plain},
		{"direct", "auto", onLink, encrypted},
		{"direct", "keyless auto", onLink, plain},
		{"auto", "auto", onLink, encrypted},
		{"auto", "keyless auto", onLink, plain},
		{"keyless auto", "keyless auto", onLink, plain},
		{"laptop", "wireguard", never, encrypted},
		{"laptop", "vxlan", never, encrypted},
		{"laptop", "direct", never, encrypted},
		{"laptop", "keyless auto", never, encrypted},
	} {
		for _, names := range [][2]string{{k.a, k.b}, {k.b, k.a}} {
			a, b := nodes[names[0]], nodes[names[1]]
			if got := control.DirectBetween(&a, &b); got != k.direct {
				t.Errorf("%s and %s: directness %d, want %d", names[0], names[1], got, k.direct)
			}
			if got := control.EncryptedBetween(&a, &b); got != k.tunnel {
				t.Errorf("%s and %s: encrypted tunnel %t, want %t", names[0], names[1], got, k.tunnel)
			}
		}
	}
}
