package cni_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// upstream builds the plugins of containernetworking/plugins that run under or behind warren-cni, beside it, in the
// version of go.mod, where they are listed as tools.
var upstream = sync.OnceValue(func() error {
	bin, err := binary()
	if err != nil {
		return err
	}
	args := []string{"build", "-o", filepath.Dir(bin) + "/"}
	for _, name := range []string{
		"ipam/dhcp", "ipam/host-local", "ipam/static", "meta/bandwidth", "meta/firewall", "meta/portmap", "meta/tuning",
	} {
		args = append(args, "github.com/containernetworking/plugins/plugins/"+name)
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the upstream plugins: %w\n%s", err, out)
	}
	return nil
})

// newNodeWithUpstream is a node with the upstream plugins in CNI_PATH.
func newNodeWithUpstream(t testing.TB) *node {
	t.Helper()
	n := newNode(t)
	if err := upstream(); err != nil {
		t.Fatal(err)
	}
	return n
}
