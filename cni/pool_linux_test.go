package cni_test

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

// STATUS knows, as ADD does, that another network has what is left of the pool that both have.
func TestStatusOfSharedPool(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "podCIDRs": ["10.244.1.0/29"]`
	sh(t, n.ns, "ip link add warren0 type veth peer name x && ip link set warren0 up && ip link set x up")
	n.file.Device = "warren0"
	n.writeNodeFile()
	n.daemon(healthy)
	conf := n.conf("1.1.0", cni.ModeRouted)
	other := strings.Replace(conf, `"pods"`, `"other"`, 1)
	late := n.pod(conf)
	status := func() *types.Error {
		_, err := n.do(call{command: "STATUS", conf: conf})
		return err
	}
	var pods []*pod
	for i := range 5 {
		if err := status(); err != nil {
			t.Fatalf("with %d of 5 addresses in use: %+v", i, err)
		}
		p := n.pod([]string{other, other, other, conf, other}[i])
		p.add()
		pods = append(pods, p)
	}
	const want = "all 5 addresses of 10.244.1.0/29 are in use (4 of them by other networks)"
	refusedWith(t, "STATUS", status(), types.ErrPluginNotAvailable, want)
	_, err := n.do(late.call("ADD"))
	refusedWith(t, "ADD", err, types.ErrTryAgainLater, want)
	pods[0].del()
	if err := status(); err != nil {
		t.Errorf("after a pod of the other network left: %+v", err)
	}
	late.add()
	for _, p := range append(pods[1:], late) {
		p.del()
	}
}
