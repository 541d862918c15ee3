package cni_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// mountState puts the state directory on a file system of its own.
func (n *node) mountState(options string) {
	n.t.Helper()
	if err := os.MkdirAll(n.state(), 0o700); err != nil {
		n.t.Fatal(err)
	}
	sh(n.t, "", "mount -t tmpfs -o mode=700"+options+" none "+n.state())
	n.t.Cleanup(func() { _ = exec.Command("umount", n.state()).Run() })
}

// kernel is the part of a dump that is not files.
func (n *node) kernel() string {
	n.t.Helper()
	return regexp.MustCompile(`(?m)^/cni/.*\n?`).ReplaceAllString(n.dump(), "")
}

func refusedWith(t *testing.T, what string, err *types.Error, code uint, parts ...string) {
	t.Helper()
	if err == nil || err.Code != code {
		t.Errorf("%s: %+v, want code %d", what, err, code)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Msg, part) {
			t.Errorf("%s: %q does not say %q", what, err.Msg, part)
		}
	}
}

// In a state directory that has become read-only DEL and GC take away what they can, and say what keeps the rest; when
// it can be written again, they complete it. ADD changes nothing, and STATUS says so.
func TestReadOnlyState(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.mountState("")
			n.warm(mode)
			before, bare := n.dump(), n.kernel()
			conf := n.conf("1.1.0", mode)
			first, second, late := n.pod(conf), n.pod(conf), n.pod(conf)
			readOnly := func() { sh(t, "", "mount -o remount,ro "+n.state()) }
			writable := func() { sh(t, "", "mount -o remount,rw "+n.state()) }

			first.add()
			second.add()
			readOnly()
			_, err := n.do(late.call("ADD"))
			refusedWith(t, "ADD", err, types.ErrIOFailure, "read-only file system", "make "+n.state()+" writable")
			_, err = n.do(late.call("STATUS"))
			refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, "read-only file system", "make "+n.state()+" writable")
			late.del() // of what never was
			_, err = n.do(first.call("DEL"))
			refusedWith(t, "DEL", err, types.ErrIOFailure, "read-only file system", "interface is removed, repeat DEL")
			_, err = n.do(first.call("DEL"))
			refusedWith(t, "DEL again", err, types.ErrIOFailure)
			if out, err := try(first.ns, "ip link show eth0"); err == nil {
				t.Errorf("the pod still has eth0: %s", out)
			}
			ping(t, second.ns, n.file.Gateways[0])
			if out := sh(t, n.ns, "nft list chain inet warren outgoing"); !strings.Contains(out, "masquerade") {
				t.Error("one of two pods left, and nothing is translated")
			}
			_, err = n.do(second.call("DEL"))
			refusedWith(t, "the last DEL", err, types.ErrIOFailure, "read-only file system")
			unchanged(t, "the kernel, after DEL", bare, n.kernel())
			writable()
			first.del()
			second.del()
			unchanged(t, "all, after DEL", before, n.dump())

			first.add()
			second.add()
			readOnly()
			_, err = n.do(n.gc(mode, noAttachments))
			refusedWith(t, "GC", err, types.ErrIOFailure, "read-only file system")
			unchanged(t, "the kernel, after GC", bare, n.kernel())
			writable()
			n.must(n.gc(mode, noAttachments))
			unchanged(t, "all, after GC", before, n.dump())
		})
	}
}

// A state directory that was never anything but read-only has no lock file to open.
func TestReadOnlyFromTheStart(t *testing.T) {
	n := newNode(t)
	n.mountState(",ro")
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	_, err := n.do(p.call("ADD"))
	refusedWith(t, "ADD", err, types.ErrIOFailure, "read-only file system")
	_, err = n.do(p.call("STATUS"))
	refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, "read-only file system")
	p.del()
	n.must(n.gc(cni.ModeRouted, noAttachments))
}

// Only a part is read-only: the pods' records, as a bind mount shows them to the plugin.
func TestReadOnlyRecords(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before, bare := n.dump(), n.kernel()
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	pods := podrecord.Dir(n.state())
	sh(t, "", "mount --bind "+pods+" "+pods+" && mount -o remount,bind,ro "+pods)
	t.Cleanup(func() { _ = exec.Command("umount", pods).Run() })
	_, err := n.do(p.call("STATUS"))
	refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, "read-only file system")
	_, err = n.do(p.call("DEL"))
	refusedWith(t, "DEL", err, types.ErrIOFailure, "read-only file system")
	unchanged(t, "the kernel", bare, n.kernel())
	sh(t, "", "umount "+pods)
	p.del()
	unchanged(t, "all", before, n.dump())
}

// On a full disk ADD fails and leaves nothing, STATUS says so, and DEL works.
func TestFullDisk(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.mountState(",size=128k")
			n.warm(mode)
			before := n.dump()
			conf := n.conf("1.1.0", mode)
			p, late := n.pod(conf), n.pod(conf)
			fill := filepath.Join(n.state(), "fill")
			fillUp := func() { _, _ = try("", "cat /dev/zero > "+fill) }

			p.add()
			fillUp()
			full := n.dump()
			_, err := n.do(late.call("ADD"))
			refusedWith(t, "ADD", err, types.ErrIOFailure, "no space left", "disk is full: make room in "+n.state())
			unchanged(t, "ADD", full, n.dump())
			_, err = n.do(late.call("STATUS"))
			refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, "no space left", "make room in "+n.state())
			unchanged(t, "STATUS", full, n.dump())
			late.del()
			p.del()
			sh(t, "", "rm "+fill)
			unchanged(t, "DEL", before, n.dump())

			// Full at each of the blocks that ADD needs, from the first pod's on.
			failed := 0
			for left := range 10 {
				fillUp()
				size, err := os.Stat(fill)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(fill, size.Size()-int64(left)*4096); err != nil {
					t.Fatal(err)
				}
				full := n.dump()
				_, failure := n.do(late.call("ADD"))
				if failure != nil {
					failed++
					refusedWith(t, "ADD", failure, types.ErrIOFailure, "no space left")
					unchanged(t, "ADD", full, n.dump())
				}
				late.del()
				sh(t, "", "rm "+fill)
				unchanged(t, "ADD and DEL", before, n.dump())
			}
			if failed < 2 || failed == 10 {
				t.Errorf("%d of 10 ADD failed: the test showed nothing", failed)
			}
		})
	}
}

// The state directory, or cni in it, has become a file: DEL and GC take away what the kernel has, and say what is
// wrong. When it is back, they complete it.
func TestStateBecomesFile(t *testing.T) {
	for _, mode := range modes {
		for _, below := range []string{"", "/cni"} {
			t.Run(mode+below, func(t *testing.T) {
				n := newNode(t)
				n.warm(mode)
				before, bare := n.dump(), n.kernel()
				p := n.pod(n.conf("1.1.0", mode))
				dir := n.state() + below
				lose := func() { sh(t, "", fmt.Sprintf("mv %s %s.away && echo x > %s", dir, n.dir+"/state", dir)) }
				find := func() { sh(t, "", fmt.Sprintf("rm %s && mv %s.away %s", dir, n.dir+"/state", dir)) }
				hint := "must be directories"

				p.add()
				lose()
				_, err := n.do(p.call("DEL"))
				refusedWith(t, "DEL", err, types.ErrIOFailure, "not a directory", hint, "interface is removed, repeat DEL")
				_, err = n.do(p.call("ADD"))
				refusedWith(t, "ADD", err, cni.CodeState, dir)
				_, err = n.do(p.call("STATUS"))
				refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, dir)
				find()
				unchanged(t, "the kernel, after DEL", bare, n.kernel())
				p.del()
				unchanged(t, "all, after DEL", before, n.dump())

				p.add()
				lose()
				_, err = n.do(n.gc(mode, noAttachments))
				refusedWith(t, "GC", err, types.ErrIOFailure, "not a directory", hint)
				find()
				unchanged(t, "the kernel, after GC", bare, n.kernel())
				n.must(n.gc(mode, noAttachments))
				unchanged(t, "all, after GC", before, n.dump())
			})
		}
	}
}

// A file system without room for one more file, before there is a lock file.
func TestDELWithoutLockFile(t *testing.T) {
	n := newNode(t)
	n.mountState(",nr_inodes=64")
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	lock := filepath.Join(n.state(), "cni", "lock")
	sh(t, "", "rm "+lock)
	_, _ = try("", "for i in $(seq 100); do : > "+n.state()+"/fill$i || break; done")
	if out, err := try("", ": > "+lock); err == nil {
		t.Fatalf("there is still room: %s", out)
	}
	p.del()
	sh(t, "", "rm "+n.state()+"/fill*")
	unchanged(t, "DEL", before, n.dump())
}
