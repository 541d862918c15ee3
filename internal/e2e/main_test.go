package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/wgpeer"
)

// binPrefix begins the name of the directory of a run's programs; the run's process id follows.
const binPrefix = "wrn-e2e-bin-"

// binDir is where the tests of this process put the programs.
func binDir() string { return filepath.Join(os.TempDir(), binPrefix+strconv.Itoa(os.Getpid())) }

func TestMain(m *testing.M) {
	removeOnSignal()
	code := 1
	if err := build(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if err := os.RemoveAll(binDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// build builds the programs, with the race detector when the tests have it. Without the privileges for any test there
// is nothing to build.
func build() error {
	if lab.CheckPrivileges() != nil {
		return nil
	}
	if err := sweep(); err != nil {
		return err
	}
	// Readable for everybody: a test runs a program as another user.
	if err := os.Mkdir(binDir(), 0o755); err != nil {
		return err
	}
	args := []string{"build", "-buildvcs=false", "-o", binDir() + "/"}
	if raceEnabled {
		args = append(args, "-race")
		// A program that races ends at once, so that a test sees it; one that ends does not sleep a second first.
		if err := os.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0"); err != nil {
			return err
		}
	}
	out, err := exec.Command("go", append(args, "../../cmd/warren", "../../cmd/warren-cni")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	_, _, err = wgpeer.Build(context.Background(), binDir())
	return err
}

// removeOnSignal removes the programs when a signal is to end this process. The labs do the same with what is theirs,
// and end the process; should none be there, it ends a little later.
func removeOnSignal() {
	const grace = 10 * time.Second
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		s := <-signals
		if err := os.RemoveAll(binDir()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		time.Sleep(grace)
		signal.Reset(s)
		_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
	}()
}

// sweep removes the programs of runs that were killed.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), binPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), binPrefix))
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}
