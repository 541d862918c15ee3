package cni_test

import (
	endian "encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A victim says which process is killed at a call: the one that is about to make it, the plugin itself, or all of them.
// They differ where the plugin has a process of its own for something (see remover).
type victim string

const (
	killCaller victim = "the caller"
	killPlugin victim = "the plugin"
	killAll    victim = "all"
)

// killAt runs the plugin under ptrace, with all processes that it starts, and kills when one of them is about to make
// the system call number at (from 1) of those that change state, counted over all threads; the call is not carried out
// by a process that is killed. It returns which call that was, or "" when they made fewer of them and ended by
// themselves, and how the plugin ended.
func (n *node) killAt(c call, at int, who victim) (what string, status unix.WaitStatus) {
	n.t.Helper()
	k := killer{pick: number(at), who: who}
	if out := n.trace(c, &k); k.status != 0 {
		n.t.Logf("%s, to be killed at call %d (%s), ended with %#x: %s", c.command, at, k.reached, k.status, out)
	}
	return k.reached, k.status
}

// holdAt runs the plugin to its end, and holds it when it is about to make its call number at, until meanwhile returns,
// which learns which call that is. It returns that too, and what the plugin printed if it failed.
func (n *node) holdAt(c call, at int, meanwhile func(what string)) (what, failure string) {
	n.t.Helper()
	k := killer{pick: number(at), hold: func(what string, _ int) { meanwhile(what) }}
	out := n.trace(c, &k)
	if k.status != 0 {
		failure = fmt.Sprintf("%#x: %s", k.status, out)
	}
	return k.reached, failure
}

// number picks the call of a number.
func number(at int) func(int, string) bool {
	return func(seen int, _ string) bool { return seen == at }
}

// trace runs the plugin under a killer, and returns what it printed.
func (n *node) trace(c call, k *killer) string {
	n.t.Helper()
	cmd := n.command(c)
	dir := n.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "stdin"), []byte(c.conf), 0o600); err != nil {
		n.t.Fatal(err)
	}
	stdin, err := os.Open(filepath.Join(dir, "stdin")) // a pipe would need somebody who fills it
	if err != nil {
		n.t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer stdout.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stdout
	cmd.ExtraFiles = []*os.File{stdin, stdin} // as runtimes may leave some open
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	done := make(chan error)
	go func() {
		// A process can be traced by the thread alone that started it. The thread ends with the goroutine.
		runtime.LockOSThread()
		k.threads, k.dead = map[int]bool{}, map[int]bool{}
		done <- k.run(cmd)
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("%s under ptrace, which reached %q: %v", c.command, k.reached, err)
	}
	out, err := os.ReadFile(stdout.Name())
	if err != nil {
		n.t.Fatal(err)
	}
	return string(out)
}

// A killer traces a process and those that it starts, and kills at a call, or holds the caller there.
type killer struct {
	pick    func(seen int, what string) bool
	who     victim
	hold    func(what string, caller int) // instead of killing; caller is a thread's id
	seen    int                           // calls that change state
	threads map[int]bool                  // that there are: whether the first stop was seen
	dead    map[int]bool                  // threads that ended
	reached string                        // the call, once it is reached
	status  unix.WaitStatus               // with which the leader ended
	ended   bool                          // the leader has
	leader  int
	plugin  bool // nsenter has become the plugin
}

// run traces cmd to its end.
func (k *killer) run(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	k.leader = cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }()
	var status unix.WaitStatus
	if _, err := wait(k.leader, &status); err != nil {
		return fmt.Errorf("the first stop: %w", err)
	}
	k.threads[k.leader] = true
	const options = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE |
		unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC
	if err := unix.PtraceSetOptions(k.leader, options); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	for tid, signal := k.leader, 0; ; {
		// The thread may have died with the others meanwhile.
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return errors.Join(err, unix.Kill(k.leader, unix.SIGKILL))
		}
		var err error
		for {
			if k.ended && len(k.threads) == 0 {
				return nil
			}
			if tid, err = wait(-1, &status); err != nil {
				return fmt.Errorf("waiting: %w", err)
			}
			if status.Stopped() {
				break
			}
			// Or it is a child of this thread's that has nothing to do with this.
			delete(k.threads, tid)
			k.dead[tid] = true
			if tid == k.leader {
				k.status, k.ended = status, true
			}
		}
		if signal, err = k.stopped(tid, status); err != nil {
			return errors.Join(err, unix.Kill(k.leader, unix.SIGKILL))
		}
	}
}

// wait waits for children and tracees of this thread; those of the other threads are not its business.
func wait(pid int, status *unix.WaitStatus) (int, error) {
	for {
		tid, err := unix.Wait4(pid, status, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return tid, err
		}
	}
}

// stopped looks at a thread that stopped, and returns the signal with which it is to go on.
func (k *killer) stopped(tid int, status unix.WaitStatus) (signal int, err error) {
	first := !k.threads[tid]
	k.threads[tid] = true
	const syscallStop = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD
	switch stop := status.StopSignal(); {
	case stop == syscallStop:
		return 0, k.syscallStop(tid)
	case stop == unix.SIGTRAP:
		switch status.TrapCause() {
		case unix.PTRACE_EVENT_EXEC:
			k.plugin = true
		case unix.PTRACE_EVENT_CLONE, unix.PTRACE_EVENT_FORK, unix.PTRACE_EVENT_VFORK:
			started, err := unix.PtraceGetEventMsg(tid)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return 0, fmt.Errorf("PTRACE_GETEVENTMSG: %w", err)
			}
			if err == nil && !k.threads[int(started)] && !k.dead[int(started)] {
				k.threads[int(started)] = false
			}
		}
		return 0, nil
	case first && stop == unix.SIGSTOP: // how a new thread begins
		return 0, nil
	default:
		return int(stop), nil
	}
}

// syscallInfo is the kernel's struct ptrace_syscall_info at the entry of a system call.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	_    uint32    // arch
	_    [2]uint64 // instruction and stack pointers
	nr   uint64
	args [6]uint64
	_    [2]uint64
}

func (k *killer) syscallStop(tid int) error {
	if !k.plugin || k.reached != "" {
		return nil
	}
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info),
		uintptr(unsafe.Pointer(&info)), 0, 0) // Linux 5.3
	if errno == unix.ESRCH {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("PTRACE_GET_SYSCALL_INFO: %w", errno)
	}
	if info.op != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return nil
	}
	what := changes(tid, info)
	if what == "" {
		return nil
	}
	if k.seen++; !k.pick(k.seen, what) {
		return nil
	}
	k.reached = what
	if k.hold != nil {
		k.hold(what, tid)
		return nil
	}
	return k.kill(tid)
}

// kill kills whom it is to kill when a thread is at the call.
func (k *killer) kill(caller int) error {
	process := processOf(caller)
	switch k.who {
	case killCaller:
		return unix.Kill(process, unix.SIGKILL)
	case killPlugin:
		return k.killPlugin()
	}
	for tid := range k.threads {
		if err := unix.Kill(processOf(tid), unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// killPlugin kills the plugin itself, if it has not ended.
func (k *killer) killPlugin() error {
	if k.ended {
		return nil
	}
	return unix.Kill(k.leader, unix.SIGKILL)
}

// processOf is the process of a thread; the thread's own id when that is gone.
func processOf(tid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(text)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(id)); err == nil {
				return pid
			}
		}
	}
	return tid
}

// changes names a system call that changes state outside of the process; "" for any other.
func changes(tid int, info syscallInfo) string {
	fd := func() string {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, info.args[0]))
		if err != nil {
			return err.Error()
		}
		return target
	}
	switch info.nr {
	case unix.SYS_OPENAT:
		if info.args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0 {
			return "openat, which creates"
		}
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV:
		if to := fd(); to != "anon_inode:[eventfd]" { // by which the Go runtime wakes itself
			return "write to " + to
		}
	case unix.SYS_SENDTO:
		return netlinkChange(tid, info.args[1])
	case unix.SYS_SENDMSG:
		iov := readWords(tid, info.args[1]+16, 1) // msg_iov
		if iov == nil {
			return "sendmsg"
		}
		base := readWords(tid, iov[0], 1)
		if base == nil {
			return "sendmsg"
		}
		return netlinkChange(tid, base[0])
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FCHMOD, unix.SYS_FCHOWN:
		return fmt.Sprintf("call %d on %s", info.nr, fd())
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT,
		unix.SYS_MKNODAT, unix.SYS_FCHMODAT, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_SETNS:
		return fmt.Sprintf("call %d", info.nr)
	}
	return ""
}

// netlinkChange names the message in a buffer by its type; "" when it only asks.
func netlinkChange(tid int, buffer uint64) string {
	head := readWords(tid, buffer, 1) // length (32 bits), type and flags (16 bits each)
	if head == nil {
		return "netlink message"
	}
	kind := uint16(head[0] >> 32)
	// nftables is asked by single messages, and changed by batches, which begin with a message of another kind. Of
	// rtnetlink's numbers every fourth asks.
	if kind>>8 == unix.NFNL_SUBSYS_NFTABLES || kind >= unix.RTM_BASE && kind%4 == unix.RTM_GETLINK%4 {
		return ""
	}
	return fmt.Sprintf("netlink message %#x", kind)
}

// readWords reads 64-bit words of the traced process; nil when they can't be read.
func readWords(tid int, address uint64, count int) []uint64 {
	data := make([]byte, 8*count)
	if n, err := unix.PtracePeekData(tid, uintptr(address), data); err != nil || n != len(data) {
		return nil
	}
	words := make([]uint64, count)
	for i := range words {
		words[i] = endian.NativeEndian.Uint64(data[8*i:])
	}
	return words
}
