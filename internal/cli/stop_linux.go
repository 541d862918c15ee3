package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/node"
	"github.com/warren-net/warren/node/config"
)

// stopDaemon stops the node's daemon, if one runs: the service, or else whoever listens on its socket.
func stopDaemon(ctx context.Context, path string, cfg *config.Config, stderr io.Writer) error {
	if err := stopService(ctx, path); err != nil {
		return err
	}
	pid, err := listener(cfg.SocketPath())
	if err != nil || pid == 0 {
		return err
	}
	p, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(p)
		err = unix.PidfdSendSignal(p, unix.SIGTERM, nil, 0)
	}
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		return fmt.Errorf("stop the node's daemon, which is process %d: %w: stop it, and run this again", pid, err)
	}
	poll := []unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for end := time.Now().Add(settle); time.Now().Before(end) && ctx.Err() == nil; {
		if n, err := unix.Poll(poll, 200); err == nil && n > 0 {
			fmt.Fprintf(stderr, "warren: the node's daemon, process %d, is stopped\n", pid)
			return nil
		}
	}
	return errors.Join(ctx.Err(),
		fmt.Errorf("the node's daemon, process %d, does not end: stop it, and run this again", pid))
}

// listener is the process that listens on the socket; 0: none does.
func listener(socket string) (int, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return 0, nil //nolint:nilerr // whoever is there does not listen
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil || cred.Pid == 0 { // 0: of another PID namespace, such as a container's
		return 0, fmt.Errorf("the node's daemon answers at %s, and its process cannot be seen from here: stop it, and run "+
			"this again", socket)
	}
	return int(cred.Pid), nil
}

// processText names a process that listener found, of which 0 is one that cannot be seen from here.
func processText(pid int) string {
	if pid == 0 {
		return "a process that cannot be seen from here"
	}
	return fmt.Sprintf("process %d", pid)
}

// takeDown removes what a daemon left that stopped with `onExit: leave`, or was killed.
func takeDown(cfg *config.Config, stderr io.Writer) error {
	if _, err := os.Stat(filepath.Join(cfg.RunDir, nodefile.Name)); err != nil {
		return nil //nolint:nilerr // it left nothing
	}
	return down(cfg, stderr)
}

func down(cfg *config.Config, stderr io.Writer) error {
	guardsLeft, err := node.Down(cfg)
	if err != nil {
		return err
	}
	if guardsLeft {
		fmt.Fprintf(stderr, "warren: pods are still attached, so the guards that keep their traffic from leaving in the "+
			"clear stay; detach the pods (see %s) and run `warren down` again\n", cfg.StateDir)
	}
	return nil
}

// leftBy is where `warren leave` puts the configuration.
func leftBy(path string) string { return path + ".left" }

// configLeft is the configuration of a node that is to be taken down. Of one that has left its network, and of one
// whose file is gone, enough is known without.
func configLeft(path string, named bool, stderr io.Writer) (*config.Config, error) {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return config.Load(path)
	}
	if left := leftBy(path); exists(left) {
		fmt.Fprintf(stderr, "warren: %s is not there any more; what the node had, %s says\n", path, left)
		return config.Load(left)
	}
	if named {
		return config.Load(path) // which says what is wrong
	}
	cfg := config.Default()
	fmt.Fprintf(stderr, "warren: there is no %s: what is taken down is the node with device %s, run directory %s and "+
		"state directory %s; for another one name its file with --config\n", path, cfg.Device, cfg.RunDir, cfg.StateDir)
	return cfg, nil
}
