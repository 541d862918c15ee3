package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/apisocket"
)

// ErrRunning is returned by Run and Down when another node daemon uses the run directory.
var ErrRunning = errors.New("another warren is running")

// An instance is the lock that this process holds.
type instance struct{ file *os.File }

// acquire takes the lock of the run directory and writes the process id into the file.
func acquire(runDir string) (*instance, error) {
	path := filepath.Join(runDir, apisocket.LockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock of the run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, fmt.Errorf("%w with run directory %s (%s); stop it first",
			ErrRunning, runDir, holder(f))
	}
	pid := fmt.Sprintf("%d\n", os.Getpid())
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	if _, err := f.WriteAt([]byte(pid), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), f.Close())
	}
	return &instance{f}, nil
}

// holder says who wrote the lock file last.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return "pid " + pid
	}
	return "it has not written its pid yet"
}

// release gives the lock back.
func (i *instance) release() error { return i.file.Close() }
