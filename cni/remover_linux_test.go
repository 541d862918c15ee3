package cni_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
	"golang.org/x/sys/unix"
)

// atRemoval picks the message by which an interface is removed.
func atRemoval(_ int, what string) bool {
	return what == fmt.Sprintf("netlink message %#x", unix.RTM_DELLINK)
}

// A remover that outlives its killed DEL finishes before the attachment's next ADD begins, so that it takes nothing
// away from that; and it holds nothing that the runtime waits for.
func TestRemoverOutlivesDEL(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			before := n.dump()
			p := n.pod(n.conf("1.1.0", mode))
			p.add()
			again := make(chan *types.Error, 1)
			var added []byte
			k := killer{pick: atRemoval}
			k.hold = func(_ string, caller int) {
				remover := processOf(caller)
				if remover == k.leader {
					t.Error("DEL removes the interface itself")
				}
				theirs, given := descriptors(t, k.leader), 5 // as many has DEL from the runtime
				for fd, what := range descriptors(t, remover) {
					for at := range given {
						if theirs[at] == what && what != os.DevNull {
							t.Errorf("the remover's descriptor %d is the runtime's %d: %s", fd, at, what)
						}
					}
				}
				if err := k.killPlugin(); err != nil {
					t.Error(err)
				}
				go func() {
					out, err := n.do(p.call("ADD"))
					added = out
					again <- err
				}()
				select {
				case err := <-again:
					t.Errorf("an ADD was done (%+v) while the remover of the attachment was at work", err)
					again <- err
				case <-time.After(300 * time.Millisecond):
				}
			}
			n.trace(p.call("DEL"), &k)
			if k.reached == "" {
				t.Fatal("no interface was removed")
			}
			if !k.status.Signaled() {
				t.Errorf("DEL ended with %#x before it was killed", k.status)
			}
			if err := <-again; err != nil {
				t.Fatalf("ADD after the remover's end: %+v", err)
			}
			ping(t, p.ns, n.file.Gateways[0])
			ping(t, n.ns, netip.MustParseAddr(addrOf(t, added)))
			p.del()
			unchanged(t, "at the end", before, n.dump())
		})
	}
}

// descriptors are what a process has open.
func descriptors(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	open := map[int]string{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Error(err)
		}
		if open[fd], err = os.Readlink(dir + e.Name()); err != nil {
			t.Error(err)
		}
	}
	return open
}

// A DEL whose remover is killed removes the interface itself, and succeeds.
func TestRemoverKilled(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	k := killer{pick: atRemoval, who: killCaller}
	out := n.trace(p.call("DEL"), &k)
	if k.reached == "" || k.status != 0 {
		t.Errorf("DEL with a killed remover (%s) ended with %#x: %s", k.reached, k.status, out)
	}
	unchanged(t, "with a killed remover", before, n.dump())
}

// Whoever starts a remover by hand can have it remove Warren's host interfaces only.
func TestRemoverByHand(t *testing.T) {
	n := newNode(t)
	sh(t, n.ns, "ip link add keep type veth peer name keep2")
	out, err := try(n.ns, n.bin+" remove-interface keep")
	if err == nil || !strings.Contains(out, "not the name of a pod's host interface") {
		t.Errorf("it says %q, %v", out, err)
	}
	sh(t, n.ns, "ip link show keep")
	name := podrecord.HostIfName("x", "eth0")
	sh(t, n.ns, "ip tuntap add "+name+" mode tun")
	out, err = try(n.ns, n.bin+" remove-interface "+name)
	if err == nil || !strings.Contains(out, "not the veth that Warren makes") {
		t.Errorf("it says %q, %v", out, err)
	}
	sh(t, n.ns, "ip link show "+name)
}

// A DEL whose remover somebody has stopped ends it, and removes the interface itself.
func TestRemoverStopped(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	for try := 1; ; try++ {
		p := n.pod(n.conf("1.1.0", cni.ModeRouted))
		p.add()
		cmd := n.command(p.call("DEL"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		caught := stopRemover(cmd.Process.Pid, done)
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("DEL: %v", err)
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			t.Fatal("DEL waits for its remover for more than a minute")
		}
		unchanged(t, "DEL", before, n.dump())
		if caught {
			return
		}
		if try == 50 {
			t.Fatal("no remover was met before it was done")
		}
	}
}

// stopRemover stops the process that another one starts, and reports whether it met it at work.
func stopRemover(plugin int, done chan error) bool {
	for {
		select {
		case err := <-done:
			done <- err
			return false
		default:
		}
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", plugin))
		for _, children := range threads {
			text, _ := os.ReadFile(children)
			child, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				continue
			}
			// Before it is that program DEL can't go on without it.
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if !strings.Contains(string(line), "remove-interface") || unix.Kill(child, unix.SIGSTOP) != nil {
				continue
			}
			time.Sleep(100 * time.Millisecond)
			select { // it had reported before
			case err := <-done:
				done <- err
				_ = unix.Kill(child, unix.SIGCONT)
				return false
			default:
				return true
			}
		}
	}
}
