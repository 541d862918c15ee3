package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errNoNetns is the sentinel for a network namespace that is gone.
var errNoNetns = errors.New("the network namespace is gone")

// podNetns is an open network namespace of a pod, with a netlink socket in it.
type podNetns struct {
	file *os.File
	path string
	host netns.NsHandle // the plugin's own
	*netlink.Handle
}

// openNetns opens the namespace at path. Its errors carry the specification's code and wrap errNoNetns when the
// namespace is gone.
func openNetns(path string) (*podNetns, error) {
	bad := func(format string, args ...any) error { return fail(types.ErrInvalidNetNS, format, args...) }
	if path == "" {
		return nil, bad("CNI_NETNS is empty: the runtime must name the pod's network namespace")
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil, bad("CNI_NETNS is %s, which does not exist: %w; the pod has ended, or the runtime did not make it",
			path, errNoNetns)
	case err != nil:
		return nil, bad("CNI_NETNS is %s: %w", path, err)
	}
	host, err := netns.Get()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the plugin's own network namespace: %w", err), f.Close())
	}
	n := &podNetns{file: f, path: path, host: host}
	if err = n.verify(); err == nil {
		n.Handle, err = netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			err = bad("entering network namespace %s: %w; the plugin needs CAP_SYS_ADMIN", path, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), host.Close())
	}
	return n, nil
}

// verify makes sure that the file is a network namespace, and not the host's own.
func (n *podNetns) verify() error {
	bad := func(format string, args ...any) error { return fail(types.ErrInvalidNetNS, format, args...) }
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(n.file.Fd()), &stat); err != nil {
		return bad("CNI_NETNS is %s: %w", n.path, err)
	}
	if stat.Type != unix.NSFS_MAGIC {
		return bad("CNI_NETNS is %s, which is no namespace but an ordinary file: %w, or the path is wrong", n.path,
			errNoNetns)
	}
	kind, err := unix.IoctlRetInt(int(n.file.Fd()), unix.NS_GET_NSTYPE) // Linux 4.11
	if err == nil && kind != unix.CLONE_NEWNET {
		return bad("CNI_NETNS is %s, which is a namespace of another kind: it must be a network namespace", n.path)
	}
	if n.host.Equal(netns.NsHandle(n.file.Fd())) {
		return bad("CNI_NETNS is %s, which is the host's own network namespace: a pod needs one of its own (hostNetwork "+
			"pods "+
			"get no CNI call)", n.path)
	}
	return nil
}

func (n *podNetns) close() {
	n.Handle.Close()
	_ = n.host.Close()
	_ = n.file.Close()
}

// do runs f on a thread inside the namespace, for what only /proc/sys offers.
func (n *podNetns) do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(netns.NsHandle(n.file.Fd()))
		if err != nil {
			err = fmt.Errorf("entering network namespace %s: %w", n.path, err)
		} else {
			err = f()
		}
		// A thread that can't come back stays locked: the runtime ends it with the goroutine, and nothing else runs there.
		if netns.Set(n.host) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}
