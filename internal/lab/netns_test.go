package lab

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNamespacesBeforeIproute2 makes a namespace on a machine where `ip netns` never ran, and removes it after it did.
func TestNamespacesBeforeIproute2(t *testing.T) {
	NeedRoot(t)
	dir := t.TempDir()
	err := onOwnThread(func() error {
		// A mount namespace of the thread's own, from which nothing gets out.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return err
		}
		for range 2 { // the lab, and iproute2 after it
			if err := shareNetnsDir(dir); err != nil {
				return err
			}
			file := filepath.Join(dir, "x")
			if _, err := os.Stat(file); err == nil {
				if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
					return err
				}
				return os.Remove(file)
			}
			if err := os.WriteFile(file, nil, 0o444); err != nil {
				return err
			}
			if err := unix.Mount("/proc/thread-self/ns/net", file, "none", unix.MS_BIND, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}
