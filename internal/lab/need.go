package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// RequireRootEnv is the environment variable that turns a missing privilege from a skipped test into a failed one:
// `make test` sets it to 1, so that a run in CI can't pass by leaving the kernel's part out.
const RequireRootEnv = "WARREN_REQUIRE_ROOT"

// NeedRoot returns when the test may make network namespaces and TUN devices. Otherwise it skips the test, saying why,
// or fails it when RequireRootEnv is 1.
func NeedRoot(t testing.TB) {
	t.Helper()
	err := CheckPrivileges()
	if err == nil {
		return
	}
	if os.Getenv(RequireRootEnv) == "1" {
		t.Fatalf("%s=1, but this test can't run: %v", RequireRootEnv, err)
	}
	t.Skipf("SKIPPED, NOT TESTED: %v (`make test` as root runs it)", err)
}

// NeedTool returns when the program, of the Debian package, is there. Otherwise it skips the test, saying why, or fails
// it when RequireRootEnv is 1.
func NeedTool(t testing.TB, tool, pkg string) {
	t.Helper()
	_, err := exec.LookPath(tool)
	if err == nil {
		return
	}
	if os.Getenv(RequireRootEnv) == "1" {
		t.Fatalf("%s=1, but this test can't run: %v: install %s", RequireRootEnv, err, pkg)
	}
	t.Skipf("SKIPPED, NOT TESTED: %v (Debian's package %s has it)", err, pkg)
}

// CheckPrivileges reports what is missing to make network namespaces and TUN devices: nil when nothing is.
func CheckPrivileges() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("effective user is %d, and network namespaces need root: run it as root or through sudo", uid)
	}
	if err := openable("/dev/net/tun"); err != nil {
		return fmt.Errorf("no TUN device: %w: load the tun module, or hand /dev/net/tun to this container", err)
	}
	if err := canUnshareNet(); err != nil {
		return fmt.Errorf("making a network namespace: %w: CAP_SYS_ADMIN and a kernel with CONFIG_NET_NS are needed", err)
	}
	return nil
}

func openable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// canUnshareNet tries the real thing: capabilities and seccomp filters are easier asked than read.
func canUnshareNet() error {
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and takes its namespace along.
		runtime.LockOSThread()
		result <- syscall.Unshare(syscall.CLONE_NEWNET)
	}()
	err := <-result
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("unshare(CLONE_NEWNET): %w (a container without privileges?)", err)
	}
	return err
}
