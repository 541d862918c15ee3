package apisocket

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// silence says why nobody answers on a socket that takes connections, as far as that can be seen, and what to do.
func silence(socket string) error {
	pid := listener(socket)
	switch state := processState(pid); state {
	case 0: // there is no such process, or not in this process namespace
		return fmt.Errorf("the node daemon at %s does not answer; its log may say why", socket)
	case 'T', 't':
		return fmt.Errorf("the node daemon at %s does not answer: its process %d is stopped, by a signal or a debugger; "+
			"let it go on with `kill -CONT %d`", socket, pid, pid)
	default:
		return fmt.Errorf("the node daemon at %s does not answer: its process %d hangs (state %c); its log may say why; "+
			"`kill -QUIT %d` ends it and has it write where it hangs, and `warren up` starts it again: connections of "+
			"pods outlive that", socket, pid, state, pid)
	}
}

// listener is the process that listens on the socket, 0 when that can't be told. The kernel remembers it itself
// (SO_PEERCRED, unix(7)), and translates it for process namespaces.
func listener(socket string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return 0 // its queue may be full
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// processState is the letter for what a process is at (proc(5)), 0 when there is none.
func processState(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The program's name, in brackets, may hold anything: the state is behind the last one.
	end := bytes.LastIndexByte(stat, ')')
	if pid == 0 || err != nil || end < 0 || end+2 >= len(stat) {
		return 0
	}
	return stat[end+2]
}
