package cni

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// setSysctl writes a network setting of the calling thread's namespace, unless it has the value already: where
// /proc/sys is read-only, that is often the case.
func setSysctl(key, value string) error {
	path := "/proc/sys/net/" + key
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("sysctl net/%s: %w", key, err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("setting sysctl net/%s to %s: %w", key, value, err)
	}
	return nil
}

// trySysctl sets what is good to have; where it can't be set, nothing breaks.
func trySysctl(key, value string) { _ = setSysctl(key, value) }

// haveIPv6 reports whether the kernel has IPv6 at all.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
