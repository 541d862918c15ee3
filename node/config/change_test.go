package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/control"
)

// What this node is changes with a restart only, so a new file may contradict what runs.
func TestAdoptRefusesWhatDoesNotFit(t *testing.T) {
	running, err := parse(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		edit []string // pairs of what is replaced by what
		want string
	}{
		{"pod CIDRs change hands", []string{"10.244.1.0/24", "10.244.2.0/24", "10.244.2.0/24", "10.244.1.0/24"},
			"w.yaml: pod CIDR 10.244.1.0/24 of node b overlaps 10.244.1.0/24, which this node has until a restart; nothing of " +
				"the new configuration is applied: restart warren"},
		{"addresses change hands", []string{"192.0.2.1,", "192.0.2.2,", "192.0.2.2]", "192.0.2.1]"},
			"address 192.0.2.1 of node b is the one that this node has until a restart"},
		{"the cluster moves", []string{"10.244.", "10.9."},
			"pod CIDR 10.244.1.0/24, which this node has until a restart, is outside the cluster's new ranges 10.9.0.0/16, "},
		{"the cluster takes the old address", []string{"192.0.2.1,", "198.51.100.1,", "192.0.2.2]", "198.51.100.2]",
			"cluster: [", "cluster: [192.0.2.0/24, "},
			"address 192.0.2.1, which this node has until a restart, is inside the cluster's new range 192.0.2.0/24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, err := parse(strings.NewReplacer(c.edit...).Replace(base))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := running.Adopt(next); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %q in it", err, c.want)
			}
		})
	}
}

// The peer whose name the file gives to this node stays a peer until the restart.
func TestAdoptUnderAnotherName(t *testing.T) {
	running, err := parse(base)
	if err != nil {
		t.Fatal(err)
	}
	next, err := parse(base + "node: b\n")
	if err != nil {
		t.Fatal(err)
	}
	merged, err := running.Adopt(next)
	if err != nil {
		t.Fatal(err)
	}
	peers := merged.Peers(merged.State)
	if !slices.ContainsFunc(peers, func(n control.Node) bool { return n.Name == "b" }) || len(peers) != 1 ||
		len(merged.State.Nodes) != 2 {
		t.Errorf("peers %+v of %+v", peers, merged.State.Nodes)
	}
}
