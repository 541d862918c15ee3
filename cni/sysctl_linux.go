package cni

import (
	"os"
	"path/filepath"

	"github.com/warren-net/warren/internal/netsysctl"
)

// setSysctl makes a network setting of the calling thread's namespace have a value.
func setSysctl(key, value string) error {
	_, err := netsysctl.Set(key, value)
	return err
}

// trySysctl sets what is good to have; where it can't be set, nothing breaks.
func trySysctl(key, value string) { _ = setSysctl(key, value) }

// haveIPv6 reports whether the kernel has IPv6 at all.
func haveIPv6() bool {
	_, err := os.Stat(filepath.Join(netsysctl.Dir, "ipv6"))
	return err == nil
}
