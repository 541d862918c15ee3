// Package apisocket is what a client of the node daemon's Unix socket knows of it, whatever it asks: its name, and
// what it means when no answer comes. It knows nothing of HTTP, which would make the CNI plugin a third larger.
package apisocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Name is the name of the socket in the run directory.
const Name = "warren.sock"

// Explain turns the errors of a conversation into sentences that say what to do.
func Explain(socket string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		if pid := starting(socket); pid != 0 {
			return fmt.Errorf("the node daemon's process %d has begun, and does not answer at %s yet: its log says what it "+
				"waits for (restart it, if somebody removed the socket)", pid, socket)
		}
		return fmt.Errorf("no node daemon answers at %s; start it with `warren up` (restart it, if somebody removed its "+
			"run directory), or name another socket with --socket or --config", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to ask the node daemon at %s; run as root or as a member of the socket's group",
			socket)
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() { // EAGAIN as well: nobody takes connections out of the queue
		return silence(socket)
	}
	return fmt.Errorf("ask the node daemon: %w", err)
}
