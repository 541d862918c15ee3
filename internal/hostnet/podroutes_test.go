package hostnet

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// lookUp asks the kernel for the way to an address, again and again on a thread of its own, until the function that it
// returns is called; that tells how often there was none.
func (w *world) lookUp(to string) (end func() (lookups, missing int)) {
	w.Helper()
	var stop atomic.Bool
	type result struct {
		lookups, missing int
		err              error
	}
	done, begun := make(chan result, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is in the test's namespace
		r := result{err: netns.Set(w.node)}
		close(begun)
		for ; r.err == nil && !stop.Load(); r.lookups++ {
			if _, err := netlink.RouteGet(addr(to).AsSlice()); err != nil {
				r.missing++
			}
		}
		done <- r
	}()
	<-begun
	return func() (int, int) {
		stop.Store(true)
		r := <-done
		w.must(r.err)
		return r.lookups, r.missing
	}
}

// TestPodRoutesStayWhileTheDeviceGoes holds that a node that stops in order reaches its pods all the time, though the
// kernel drops routes with the address that they name as source.
func TestPodRoutesStayWhileTheDeviceGoes(t *testing.T) {
	w := newWorld(t)
	w.twoPods()
	s := testSpec()
	s.Pods = []Pod{{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}}}
	for _, remove := range []struct {
		name string
		do   func()
	}{
		{"at the end of a daemon", func() {
			w.must(KeepPodRoutes(s))
			w.run("ip link del warren0")
			w.must(Remove(s, true))
		}},
		{"after a killed one", func() { w.must(Remove(s, true)) }},
	} {
		w.apply(s)
		route := fmt.Sprintf("ip route show %s", pod1v4)
		if out, want := w.run(route), pod1v4+" dev wrn00000000001 proto 87 scope link src 10.244.1.1 \n"; out != want {
			t.Fatalf("route %q, want %q", out, want)
		}
		end := w.lookUp(pod1v4)
		remove.do()
		if lookups, missing := end(); missing > 0 || lookups < 10 {
			t.Errorf("%s: no way to the pod in %d of %d lookups", remove.name, missing, lookups)
		}
		if out, want := w.run(route), pod1v4+" dev wrn00000000001 proto 87 scope link \n"; out != want {
			t.Errorf("%s: route %q, want %q", remove.name, out, want)
		}
		w.tun("warren0")
	}
}
