package cni_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

// Whoever can write to a directory below says as well which addresses are free and what Warren may undo.
func TestPartsOfTheStateOfOthers(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", cni.ModeBridge)
	p, late := n.pod(conf), n.pod(conf)
	p.add()
	cniDir := filepath.Join(n.state(), "cni")
	another := filepath.Join(cniDir, "ipam", "another")
	if err := os.Mkdir(another, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(cniDir, "bridges"), filepath.Join(cniDir, "ipam", "pods"), another} {
		for _, harm := range []struct{ do, undo, want string }{
			{"chown 65534 ", "chown 0 ", " belongs to user 65534"}, {"chmod g+w ", "chmod g-w ", " has mode 0720"},
		} {
			sh(t, "", harm.do+dir)
			_, err := n.do(late.call("ADD"))
			refusedWith(t, "ADD after "+harm.do+dir, err, cni.CodeState, dir+harm.want)
			_, err = n.do(late.call("STATUS"))
			refusedWith(t, "STATUS after "+harm.do+dir, err, types.ErrPluginNotAvailable, dir+harm.want)
			sh(t, "", harm.undo+dir)
		}
	}
	late.add()
	late.del()
	p.del()
}
