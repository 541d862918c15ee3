package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// build makes the programs that the demo needs, and the demo itself, in one directory.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for target, pkg := range map[string]string{
		"": "../../../cmd/...", "warren-demo": ".",
	} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/"+target, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, out)
		}
	}
	return dir
}

// TestInterrupted ends the demo at several moments by a signal and by the loss of its reader, and wants nothing left.
func TestInterrupted(t *testing.T) {
	lab.NeedRoot(t)
	dir := build(t)
	for _, tt := range []struct {
		name   string
		after  string // the line that has to come first; empty: at once
		signal syscall.Signal
	}{
		{"SIGINT while it is set up", "", syscall.SIGINT},
		{"SIGTERM while pings run", "same node, IPv4", syscall.SIGTERM},
		{"SIGINT in a transfer", "answers, IPv4", syscall.SIGINT},
		{"SIGHUP in a transfer", "answers, IPv4", syscall.SIGHUP},
	} {
		t.Run(tt.name, func(t *testing.T) { interrupt(t, dir, tt.after, tt.signal) })
	}
}

func interrupt(t *testing.T, dir, after string, s syscall.Signal) {
	cmd := exec.Command(filepath.Join(dir, "warren-demo"))
	cmd.Env = append(os.Environ(), "KEEP=")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	t.Cleanup(func() { _, _ = lab.Sweep(prefix, lab.SweepAbandoned) })

	lines := bufio.NewScanner(out)
	seen := after == ""
	for !seen && lines.Scan() {
		seen = strings.Contains(lines.Text(), after)
	}
	if !seen {
		t.Errorf("the demo ended before it said %q", after)
	}
	time.Sleep(300 * time.Millisecond)
	for range 2 { // make and an impatient user send it twice
		_ = cmd.Process.Signal(s)
	}
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "FAIL") {
			t.Errorf("the interrupted demo said %q", lines.Text())
		}
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != interruptedStatus {
		t.Errorf("exit status %d, want %d", status, interruptedStatus)
	}
	left, err := lab.Remains(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range left {
		if pid := fmt.Sprintf("-%d", cmd.Process.Pid); strings.Contains(name, pid) {
			t.Errorf("left behind: %s", name)
		}
	}
}
