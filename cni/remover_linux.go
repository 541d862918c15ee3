package cni

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/warren-net/warren/cni/podrecord"
)

// DEL leaves its interface to a process of its own, the remover: this program once more. When an interface is shut, no
// packet goes through it, nobody finds it by its name or number, and its routes are gone. The kernel then waits until
// nothing in it refers to the interface any more, and lets whoever asked for the removal wait too, as well as whoever
// took elements out of a set of nftables when he closes his socket: some 10 ms each, an RCU grace period, of which
// nobody sees anything. The remover waits them out, and reports to DEL before.
//
// It has the attachment's lock from DEL (lock.handOn). A DEL that is killed ends for the attachment's next ADD or DEL
// when its remover ends. A remover that is killed, or can't be started, is made up for by DEL.

// removerArg as the first argument makes the program a remover; the second one is the interface.
const removerArg = "remove-interface"

// removerDone is all that a remover says when its interface is shut and out of the source check.
const removerDone = "done\n"

// IsRemover reports whether the program was started with args (os.Args) to be a remover.
func IsRemover(args []string) bool { return len(args) == 3 && args[1] == removerArg }

// RunRemover removes the interface that args name, and writes to report when it is shut and out of the source check. It
// returns when the kernel is done with it.
func RunRemover(args []string, report io.Writer) error {
	name := args[2]
	if !podrecord.IsHostIfName(name) {
		return fmt.Errorf("%q is not the name of a pod's host interface", name)
	}
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	return host.removeVeth(name, func() error {
		if err := New().unlist(name); err != nil {
			return err
		}
		_, err := io.WriteString(report, removerDone)
		return err
	})
}

// removeAside has a remover remove an interface, and returns when that is shut and out of the source check.
func removeAside(name string) error {
	reports, report, err := os.Pipe()
	if err != nil {
		return err
	}
	remover, err := startRemover(name, report)
	_ = report.Close()
	if err != nil {
		return errors.Join(err, reports.Close())
	}
	said, err := io.ReadAll(io.LimitReader(reports, int64(len(removerDone))))
	_ = reports.Close()
	if err != nil || string(said) != removerDone {
		_, waitErr := remover.Wait() // it has ended, or is about to
		return errors.Join(fmt.Errorf("its remover said %q", said), err, waitErr)
	}
	return remover.Release()
}

func startRemover(name string, report *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// This very file, also when an upgrade has put another one in its place. It gets neither standard output nor standard
	// error, whose end the runtime waits for.
	return os.StartProcess("/proc/self/exe", []string{"warren-cni", removerArg, name}, &os.ProcAttr{
		Env: []string{}, Files: []*os.File{null, report, report},
	})
}
