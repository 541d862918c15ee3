package cni

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/warren-net/warren/cni/podrecord"
	"golang.org/x/sys/unix"
)

// An interface is removed by a process of its own, the remover: this program once more. When an interface is shut, no
// packet goes through it, nobody finds it by its name or number, and its routes are gone. The kernel then waits until
// nothing in it refers to the interface any more, and lets whoever asked for the removal wait too, as well as whoever
// took elements out of a set of nftables when he closes his socket: some 10 ms each, an RCU grace period, of which
// nobody sees anything. The remover waits them out, and reports to DEL before.
//
// Until that report it holds the attachment's lock together with DEL. A DEL that is killed ends for the attachment's
// next ADD or DEL when its remover ends. (Where there is no state directory, there is no lock either.) A remover that
// is killed, or can't be started, is made up for by DEL.

// removerArg as the first argument makes the program a remover; the second one is the interface.
const removerArg = "remove-interface"

// removerDone is all that a remover says when its interface is shut and out of the source check.
const removerDone = "done\n"

// removerLock is the remover's descriptor of the attachment's lock. It has none above that.
const removerLock = 3

// removerWait is how long DEL waits for that, before it ends a remover that somebody has stopped.
const removerWait = 10 * time.Second

// IsRemover reports whether the program was started with args (os.Args) to be a remover.
func IsRemover(args []string) bool { return len(args) == 3 && args[1] == removerArg }

// RunRemover removes the interface that args name, and writes to report when it is shut and out of the source check. It
// returns when the kernel is done with it. Nothing else may have been opened in this process.
func RunRemover(args []string, report io.Writer) error {
	name := args[2]
	if !podrecord.IsHostIfName(name) {
		return fmt.Errorf("%q is not the name of a pod's host interface", name)
	}
	// What the runtime left open in DEL, somebody may wait for the end of. (Linux 5.9; else it ends a little later.)
	_ = unix.CloseRange(removerLock+1, math.MaxUint32, 0)
	// Else it is called "exe", by which nobody would know it.
	_ = os.WriteFile("/proc/self/comm", []byte("warren-cni"), 0)
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	return host.removeVeth(name, func() error {
		if err := New().unlist(name); err != nil {
			return err
		}
		if _, err := io.WriteString(report, removerDone); err != nil {
			return err
		}
		return unix.Close(removerLock) // the state directory's file system may be taken away now
	})
}

// removeAside has a remover remove an interface, and returns when that is shut and out of the source check.
func removeAside(name string, held *lock) error {
	reports, report, err := os.Pipe()
	if err != nil {
		return err
	}
	remover, err := startRemover(name, report, held)
	_ = report.Close()
	if err != nil {
		return errors.Join(err, reports.Close())
	}
	limit := time.AfterFunc(removerWait, func() { _ = remover.Kill() })
	defer limit.Stop()
	said, err := io.ReadAll(io.LimitReader(reports, int64(len(removerDone))))
	if err == nil && string(said) == removerDone {
		_ = reports.Close()
		return remover.Release()
	}
	const enough = 500
	rest, _ := io.ReadAll(io.LimitReader(reports, enough))
	_ = reports.Close()
	_, waitErr := remover.Wait() // it has ended, or is about to
	return errors.Join(fmt.Errorf("the process for it said %q", append(said, rest...)), err, waitErr)
}

func startRemover(name string, report *os.File, held *lock) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// Standard output and error are the runtime's, which waits for their end.
	files := []*os.File{null, report, report, null}
	if held != nil && held.f != nil {
		files[removerLock] = held.f
	}
	// This very file, also when an upgrade has put another one in its place.
	return os.StartProcess("/proc/self/exe", []string{"warren-cni", removerArg, name}, &os.ProcAttr{
		Env: []string{}, Files: files,
	})
}
