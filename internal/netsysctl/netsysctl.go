// Package netsysctl reads and writes the settings below /proc/sys/net, which are those of the calling thread's network
// namespace. It makes few system calls: a pod's interface has a dozen settings, and os.File tries to poll each one.
package netsysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir holds the settings; keys are paths below it, like "ipv4/ip_forward".
const Dir = "/proc/sys/net"

// WritableDirVar is the environment variable that names another directory to write to where Dir is read-only. A
// container that is not privileged has a read-only /proc/sys, even in the host's network namespace; the host's own one,
// mounted at another place, can be written, and shows the settings of the same namespace.
const WritableDirVar = "WARREN_SYSCTL_NET"

// Set makes a setting have a value, and returns the one that it had. It writes only where that differs, so that it does
// where /proc/sys is read-only and the value right, and reads it back: in some containers a write is accepted and
// ignored. errors.Is(err, fs.ErrNotExist) holds where there is no such setting.
func Set(key, value string) (was string, err error) {
	fd, err := unix.Open(filepath.Join(Dir, key), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if dir := os.Getenv(WritableDirVar); errors.Is(err, unix.EROFS) && dir != "" {
		fd, err = unix.Open(filepath.Join(dir, key), unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		if is, readErr := Get(key); readErr == nil && is == value {
			return is, nil
		}
		return "", fmt.Errorf("sysctl net/%s: %w", key, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if was, err = read(fd, key); was == value || err != nil {
		return was, err
	}
	if _, err := unix.Pwrite(fd, []byte(value), 0); err != nil {
		return was, fmt.Errorf("setting sysctl net/%s to %s: %w", key, value, err)
	}
	is, err := read(fd, key)
	if err == nil && is != value {
		err = fmt.Errorf("sysctl net/%s is %s after %s was written", key, is, value)
	}
	return was, err
}

// Settable reports whether Set may write the setting.
func Settable(key string) bool {
	err := unix.Access(filepath.Join(Dir, key), unix.W_OK)
	if dir := os.Getenv(WritableDirVar); errors.Is(err, unix.EROFS) && dir != "" {
		err = unix.Access(filepath.Join(dir, key), unix.W_OK)
	}
	return err == nil
}

// Get reads a setting.
func Get(key string) (string, error) {
	fd, err := unix.Open(filepath.Join(Dir, key), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("reading sysctl net/%s: %w", key, err)
	}
	value, err := read(fd, key)
	return value, errors.Join(err, unix.Close(fd))
}

func read(fd int, key string) (string, error) {
	var buffer [256]byte // more than any of them has that is set here
	n, err := unix.Pread(fd, buffer[:], 0)
	if err != nil {
		return "", fmt.Errorf("reading sysctl net/%s: %w", key, err)
	}
	return strings.TrimSpace(string(buffer[:n])), nil
}
