package cni_test

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPodSendsAtOnce has a pod send one datagram the moment ADD returned, while others make and remove interfaces all
// the time: then the kernel notices late that the pod's interface has a carrier, and drops what it is to send before.
func TestPodSendsAtOnce(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			first := n.pod(n.conf("1.1.0", mode)) // makes what stays, so that each further ADD ends with its interface
			first.add()
			busyLinks(t)
			for range 10 {
				p := n.pod(n.conf("1.1.0", mode))
				socket := socketIn(t, p.ns)
				p.add()
				if err := refused(socket); err != nil {
					t.Errorf("the pod's first datagram: %v", err)
				}
				p.del()
			}
		})
	}
}

// busyLinks has many interfaces get and lose their carrier at once, again and again until the test ends, in a namespace
// of its own: the kernel looks at 100 of them at a time, and lets the others wait for up to a second (linkwatch).
func busyLinks(t *testing.T) {
	t.Helper()
	ns := namespace(t, "busy")
	var batch strings.Builder
	for i := range 150 {
		fmt.Fprintf(&batch, "link add x%d group 7 type veth peer name y%d group 7\n", i, i)
	}
	sh(t, ns, "ip -batch - <<'END'\n"+batch.String()+"END\n")
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		var err error
		for !stop.Load() && err == nil {
			_, err = try(ns, "ip link set group 7 up && ip link set group 7 down")
		}
		done <- err
	}()
	t.Cleanup(func() {
		stop.Store(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// socketIn makes a UDP socket in a namespace that has no addresses yet.
func socketIn(t *testing.T, ns string) int {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		file, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(file, unix.CLONE_NEWNET), unix.Close(file))
		}
		if err != nil {
			made <- result{-1, err}
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("a socket in %s: %v", ns, r.err)
	}
	t.Cleanup(func() { _ = unix.Close(r.fd) })
	return r.fd
}

// refused sends a datagram to a port of the gateway that nobody listens at, and waits for the answer (ICMP).
func refused(fd int) error {
	to := &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr(gateway4).As4()}
	timeout := unix.NsecToTimeval(int64(3 * time.Second))
	err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Connect(fd, to),
	)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{0}); err != nil {
		return err
	}
	if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		return errors.Join(errors.New("no answer"), err)
	}
	return nil
}
