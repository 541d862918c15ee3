package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

const (
	maxStall  = time.Second          // for transfers that run while the cluster changes
	maxGap    = 10 * time.Second     // until a connection works again; the successor answers long before
	echoEvery = 5 * time.Millisecond // between two numbers of a connection whose gap is measured
	// A transfer at full speed loses packets in full queues by itself; a steady one stalls only when the network does.
	steadyRate = 32 << 20               // bytes per second
	settle     = 500 * time.Millisecond // of undisturbed traffic before and after a change
)

// fourthNode adds a node by editing the static files while a transfer of each family runs.
func (d *demo) fourthNode() {
	transfers := make(map[int]*lab.Transfer)
	what := "a fourth node, added to the static files in use"
	if d.etcd {
		what = "a fourth node joins"
	}
	ok := d.check(d.ctx, what, func() (string, error) {
		for _, family := range families() {
			t, err := lab.StartTransfer(d.ctx, d.path("a1", "b1", family), lab.TransferOptions{BytesPerSecond: steadyRate})
			if err != nil {
				return "", err
			}
			transfers[family] = t
		}
		time.Sleep(settle)
		detail, err := d.joinFourth()
		time.Sleep(settle)
		return detail, err
	})
	for _, family := range families() {
		t := transfers[family]
		if t == nil {
			continue
		}
		t.Finish()
		if !ok {
			_, _ = t.Wait() // the failure was shown
			continue
		}
		d.checkFamily(family, "  a transfer meanwhile: no reset, no stall over 1 s", func() (string, error) {
			r, err := t.Wait()
			if err == nil && r.LongestStall > maxStall {
				err = fmt.Errorf("stood still for %s", milliseconds(r.LongestStall))
			}
			return fmt.Sprintf("longest stall %s, %d MiB", milliseconds(r.LongestStall), r.Bytes>>20), err
		})
	}
}

// joinFourth makes node d, tells every node of it, and waits until pods of all nodes reach its pods.
func (d *demo) joinFourth() (string, error) {
	var err error
	if d.d, err = d.addNode("d"); err != nil {
		return "", err
	}
	if err := d.enter(d.d); err != nil {
		return "", err
	}
	written := time.Now()
	if err := d.startNode(d.d); err != nil {
		return "", err
	}
	for _, family := range families() {
		for _, from := range []string{"a1", "b2", "c1"} {
			for _, pair := range [][2]string{{from, "d1"}, {"d2", from}} {
				if err := d.eventually(5*time.Second, func() error {
					_, err := d.pods[pair[0]].NS.Ping(d.ctx, d.pods[pair[1]].Address(family), lab.Ping{Count: 1})
					return err
				}); err != nil {
					return "", err
				}
			}
		}
	}
	return fmt.Sprintf("all nodes reach it after %.1f s", time.Since(written).Seconds()), nil
}

// eventually tries f until it succeeds, the time is over or the demo is interrupted; it returns f's last error.
func (d *demo) eventually(wait time.Duration, f func() error) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) || d.ctx.Err() != nil {
			return err
		}
	}
}

// crash kills a daemon as an out-of-memory killer would and starts it again.
func (d *demo) crash() {
	d.survives("kill -9 of a daemon and a new start", func() error {
		if err := d.a.Kill(); err != nil {
			return err
		}
		return d.a.Up(d.ctx)
	})
	d.check(d.ctx, "the new daemon knows the pods it did not see come", func() (string, error) { return d.knows(d.a) })
}

// restart ends a daemon in order, with onExit: leave, and starts its successor with onExit: remove.
func (d *demo) restart() {
	d.survives("orderly restart (onExit: leave)", func() error {
		if err := d.b.Down(d.ctx); err != nil {
			return err
		}
		d.b.Settings.OnExit = ""
		if err := d.lab.WriteConfigs(); err != nil {
			return err
		}
		return d.b.Up(d.ctx)
	})
}

// survives runs a TCP connection per family between pods a1 and b1 while f happens to a daemon, and shows the gap.
func (d *demo) survives(name string, f func() error) {
	echoes := make(map[int]*lab.Echo)
	ok := d.check(d.ctx, name, func() (string, error) {
		for _, family := range families() {
			e, err := lab.StartEcho(d.ctx, d.path("a1", "b1", family), echoEvery)
			if err != nil {
				return "", err
			}
			echoes[family] = e
		}
		time.Sleep(settle)
		for _, e := range echoes {
			e.Mark()
		}
		begin := time.Now()
		if err := f(); err != nil {
			return "", err
		}
		return fmt.Sprintf("answers after %s", milliseconds(time.Since(begin))), nil
	})
	for _, family := range families() {
		e := echoes[family]
		switch {
		case e == nil:
		case !ok:
			_ = e.Stop() // the failure was shown
		default:
			d.checkFamily(family, "  the TCP connection goes on", func() (string, error) { return d.gap(e) })
		}
	}
}

// gap waits until the connection works again, ends it and tells its longest silence.
func (d *demo) gap(e *lab.Echo) (string, error) {
	ctx, cancel := context.WithTimeout(d.ctx, maxGap)
	defer cancel()
	err := e.WaitAnswered(ctx)
	time.Sleep(settle)
	longest := e.Longest()
	return "gap " + milliseconds(longest), errors.Join(err, e.Stop())
}

// knows wants the daemon to list the node's pods.
func (d *demo) knows(n *lab.Node) (string, error) {
	out, err := n.Warren(d.ctx, "pods", "-o", "json")
	if err != nil {
		return "", err
	}
	for _, name := range []string{n.Name + "1", n.Name + "2"} {
		for _, family := range families() {
			if a := d.pods[name].Address(family); !lab.Mentions(out, a) {
				return "", fmt.Errorf("`warren pods` does not name %s of pod %s:\n%s", a, name, out)
			}
		}
	}
	return "", nil
}

// deletePod detaches a pod and looks for its addresses on every node.
func (d *demo) deletePod() {
	pod := d.pods["c2"]
	d.check(d.ctx, "a pod deleted: its addresses gone from every table", func() (string, error) {
		// Everybody talks to it first, so that there is something to forget.
		for _, from := range []*lab.NS{d.a.NS, d.c.NS, d.pods["a1"].NS, d.pods["c1"].NS} {
			for _, family := range families() {
				if _, err := from.Ping(d.ctx, pod.Address(family), lab.Ping{Count: 1}); err != nil {
					return "", err
				}
			}
		}
		if err := pod.Delete(d.ctx, lab.PodOptions{}); err != nil {
			return "", err
		}
		delete(d.pods, "c2")
		return "routes, neighbours, nftables, IPAM, warren pods", d.eventually(2*time.Second, func() error {
			return d.noTrace(pod)
		})
	})
	d.check(d.ctx, "deleting it again is no error", func() (string, error) {
		return "", pod.Detach(d.ctx, lab.PodOptions{})
	})
}

// noTrace wants no node to mention the pod's addresses anywhere.
func (d *demo) noTrace(pod *lab.Pod) error {
	var errs []error
	for _, n := range d.lab.Nodes() {
		for _, family := range families() {
			found, err := n.FindAddress(d.ctx, pod.Address(family))
			errs = append(errs, err, list(fmt.Sprintf("node %s still has %s", n.Name, pod.Address(family)), found))
		}
	}
	return errors.Join(errs...)
}

// takeDown detaches all pods, ends all daemons and wants every node as it was before Warren came.
func (d *demo) takeDown() {
	d.check(d.ctx, "all pods deleted: no address left anywhere", func() (string, error) {
		var errs []error
		for _, pod := range d.pods {
			errs = append(errs, pod.Delete(d.ctx, lab.PodOptions{}))
		}
		for _, pod := range d.pods {
			errs = append(errs, d.eventually(2*time.Second, func() error { return d.noTrace(pod) }))
		}
		return "", errors.Join(errs...)
	})
	d.check(d.ctx, "SIGTERM: no device, address, rule, route, nft rule left", func() (string, error) {
		var errs []error
		for _, n := range d.lab.Nodes() {
			errs = append(errs, n.Down(d.ctx), d.asBefore(n))
		}
		return "", errors.Join(errs...)
	})
}

func (d *demo) asBefore(n *lab.Node) error {
	now, err := n.NS.State(d.ctx)
	if err != nil {
		return err
	}
	added, gone := now.Since(d.before[n])
	errs := []error{list("node "+n.Name+" has what it had not", added), list("node "+n.Name+" lost", gone)}
	if socket := filepath.Join(n.RunDir, "warren.sock"); exists(socket) {
		errs = append(errs, fmt.Errorf("%s is still there", socket))
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
