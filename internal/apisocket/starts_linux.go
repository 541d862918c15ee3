package apisocket

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LockName is the file beside the socket on which a daemon holds a lock, flock(2), from start to end. The kernel drops
// the lock with the process, so a killed one never blocks its successor. The file itself stays: removing it would let
// two processes hold locks on two files of one name.
const LockName = "warren.lock"

// starting is the process that holds the run directory's lock, 0 when none does or that can't be told. The kernel's
// list is read, as trying the lock would keep a daemon from taking it that starts at this moment.
func starting(socket string) int {
	var st unix.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Stat(filepath.Join(filepath.Dir(socket), LockName), &st) != nil {
		return 0
	}
	return holder(string(locks), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
}

// holder finds who has a lock by flock(2) on the file in what /proc/locks says (proc(5)).
func holder(locks, file string) int {
	for line := range strings.Lines(locks) {
		var n, pid int
		var kind, mode, access, where string
		_, err := fmt.Sscanf(line, "%d: %s %s %s %d %s", &n, &kind, &mode, &access, &pid, &where)
		if err == nil && kind == "FLOCK" && where == file {
			return pid
		}
	}
	return 0
}
