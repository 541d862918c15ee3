package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killWait bounds how long a killed process may take to be gone.
const killWait = 5 * time.Second

// A Proc is a long-running process inside a namespace. Its methods are safe for concurrent use.
type Proc struct {
	Name string // for messages and for the name of the log
	Log  string // file that holds its standard output and error
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// Run runs a command to its end inside the namespace and returns its standard output. The error holds the command
// line and what it wrote to standard error.
func (ns *NS) Run(ctx context.Context, args ...string) (string, error) {
	return ns.runWith(ctx, runInput{}, args...)
}

// runInput is what a command gets apart from its arguments.
type runInput struct {
	env   []string // added to the environment
	stdin []byte
}

func (ns *NS) runWith(ctx context.Context, in runInput, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), in.env...)
	cmd.Stdin = bytes.NewReader(in.stdin)
	cmd.WaitDelay = killWait
	// Ctrl-C on the terminal reaches the foreground process group: the lab alone decides what ends when.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := ns.Do(cmd.Run); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), fmt.Errorf("%s in %s: %w: %s", strings.Join(args, " "), ns.Name, err, said)
	}
	return stdout.String(), nil
}

// Start starts a long-running process inside the namespace, with its output in a log file of the lab. The lab kills
// it when it is closed.
func (l *Lab) Start(ns *NS, name string, args ...string) (*Proc, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("starting %s: %w", name, ErrClosed)
	}
	logFile := filepath.Join(l.Dir, name+".log")
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	defer out.Close()
	p := &Proc{Name: name, Log: logFile, cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	l.procs = append(l.procs, p)
	return p, nil
}

// Pid is the process's id.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Signal sends a signal; it is no error when the process has ended already.
func (p *Proc) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to %s: %w", s, p.Name, err)
	}
	return nil
}

// Wait waits until the process has ended and returns the error of its exit status; ctx bounds the wait.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s (pid %d) to end: %w", p.Name, p.Pid(), ctx.Err())
	}
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Proc) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	if err := p.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// LogTail is the end of the process's log, for error messages.
func (p *Proc) LogTail() string {
	const keep = 4096
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	if len(b) > keep {
		b = b[len(b)-keep:]
	}
	return strings.TrimSpace(string(b))
}

// pidsIn lists the processes that live in one of the namespaces, except this one.
func pidsIn(spaces map[nsID]bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that ended meanwhile, or a zombie, has no namespace any more.
		if id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && spaces[id] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killIn kills every process in these namespaces and waits until they are gone.
func killIn(spaces map[nsID]bool) error {
	// Whatever a name of the lab's may have been mounted over: the machine's own processes are not the lab's.
	for _, own := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		if id, err := identify(own); err == nil {
			delete(spaces, id)
		}
	}
	if len(spaces) == 0 {
		return nil
	}
	for deadline := time.Now().Add(killWait); ; time.Sleep(10 * time.Millisecond) {
		pids, err := pidsIn(spaces)
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v don't end in the lab's namespaces", pids)
		}
		for _, pid := range pids {
			if err := killInside(pid, spaces); err != nil {
				return err
			}
		}
	}
}

// killInside kills a process if it is (still) in one of the namespaces. The pidfd holds on to the process that was
// looked at, so that a reused id is never hit.
func killInside(pid int, spaces map[nsID]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // gone
	}
	defer unix.Close(fd)
	if id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || !spaces[id] {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d in the lab: %w", pid, err)
	}
	return nil
}
