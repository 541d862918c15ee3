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

// Somebody who tries the plugin by hand, without being root, is told so.
func TestOrdinaryUser(t *testing.T) {
	n := newNode(t)
	conf := n.conf("1.1.0", cni.ModeRouted)
	p := n.pod(conf)
	for _, dir := range []string{filepath.Dir(n.bin), filepath.Dir(n.dir)} { // where the plugin is, and the node's files
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	const want = "run as root, the plugin runs as user 65534"
	user := *n
	user.as = []string{"setpriv", "--reuid", "65534", "--clear-groups"}
	try := func(what string, code uint) {
		t.Helper()
		_, err := user.do(p.call("ADD"))
		refusedWith(t, what+" ADD", err, code, want)
		_, err = user.do(p.call("STATUS"))
		refusedWith(t, what+" STATUS", err, types.ErrPluginNotAvailable, want)
	}
	p.add()
	try("with a state directory of root's", cni.CodeState)
	if err := os.Chmod(n.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	try("with one that only root can read", cni.CodeState)
	p.del()
	if err := os.RemoveAll(n.state()); err != nil {
		t.Fatal(err)
	}
	_, err := user.do(p.call("STATUS"))
	refusedWith(t, "without one STATUS", err, types.ErrPluginNotAvailable, want)
	if err := os.Chmod(n.run(), 0o700); err != nil {
		t.Fatal(err)
	}
	try("with a run directory that only root can read", types.ErrIOFailure)
}
