package wgpeer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// socketDir is where wireguard-go makes its sockets, which can't be set, and where wg looks for them.
const socketDir = "/var/run/wireguard"

// deviceName is the form of the names under which the peers of all labs start: with the id of the process whose they
// are, as the sockets of all namespaces lie in one directory, and a random one, so that no name comes twice: whoever
// ends a peer removes its socket, and wireguard-go ends when that is gone. A device's name has at most 15 characters.
const deviceName = "wl%d-%04x"

func socketPath(device string) string { return filepath.Join(socketDir, device+".sock") }

// reserve finds a name that nobody in this process uses. Its file is none that anybody listens on, so wireguard-go puts
// its socket in its place.
func reserve() (device string, err error) {
	if err := sweep(); err != nil {
		return "", err
	}
	for {
		// Each time: another process takes the directory away when it was the last one in it.
		if err := os.MkdirAll(socketDir, 0o755); err != nil {
			return "", fmt.Errorf("directory of wireguard-go's sockets: %w", err)
		}
		device = fmt.Sprintf(deviceName, os.Getpid(), rand.N(1<<16))
		f, err := os.OpenFile(socketPath(device), os.O_CREATE|os.O_EXCL, 0o600)
		switch {
		case err == nil:
			return device, f.Close()
		case !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("reserving a socket for wireguard-go: %w", err)
		}
	}
}

// release removes the socket of a peer that does not run, or what reserved its place.
func release(device string) error {
	if err := os.Remove(socketPath(device)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("socket of wireguard-go: %w", err)
	}
	_ = os.Remove(socketDir) // unless somebody else's are in it
	return nil
}

var socketFile = regexp.MustCompile(`^wl(\d+)-[0-9a-f]+\.sock$`)

// sweep removes the sockets of processes that were killed.
func sweep() error {
	entries, err := os.ReadDir(socketDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sockets of wireguard-go: %w", err)
	}
	for _, e := range entries {
		m := socketFile.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		err = os.Remove(filepath.Join(socketDir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // another process sweeps too
			return fmt.Errorf("a socket that a killed process left: %w", err)
		}
	}
	return nil
}

// waitSocket waits until wireguard-go answers.
func waitSocket(ctx context.Context, device string, ended <-chan struct{}) error {
	const wait = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(device))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
			return errors.New("wireguard-go ended at once")
		case <-ctx.Done():
			return fmt.Errorf("wireguard-go does not listen: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
