package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/podrecord"
	"golang.org/x/sys/unix"
)

// errState is the sentinel for a state directory whose files can't be changed.
var errState = errors.New("the state directory can't be changed")

// stateFailure gives the error of a file operation in the state directory the specification's code, and says what to
// do. It leaves other errors as they are.
func stateFailure(stateDir string, err error) error {
	var path *fs.PathError
	var link *os.LinkError
	if err == nil || errors.Is(err, errState) || !errors.As(err, &path) && !errors.As(err, &link) {
		return err
	}
	hint := "make sure that root can read and write " + stateDir
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		hint = runAsRoot()
	case errors.Is(err, unix.EROFS):
		hint = fmt.Sprintf("make %s writable; `findmnt -T %s` says what is mounted there, and the kernel's log why it may "+
			"have become read-only", stateDir, stateDir)
	case errors.Is(err, unix.EIO):
		hint = fmt.Sprintf("the disk of %s fails; `findmnt -T %s` says which it is, and the kernel's log why", stateDir,
			stateDir)
	case errors.Is(err, unix.ENOTDIR):
		hint = fmt.Sprintf("%s and cni in it must be directories: remove what is in their place", stateDir)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = fmt.Sprintf("the disk is full: make room in %s; see `df %s` and `df -i %s`", stateDir, stateDir, stateDir)
	}
	return fail(types.ErrIOFailure, "%w: %w: %s", errState, err, hint)
}

// frozen reports whether an error says that nothing in the state directory can be changed, and so that nobody adds a
// pod either: it is read-only, broken (EIO), or none (ENOTDIR).
func frozen(err error) bool {
	if !errors.Is(err, errState) {
		return false
	}
	for _, e := range []error{unix.EROFS, fs.ErrPermission, unix.EIO, unix.ENOTDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// writable tries whether ADD could write what it has to write.
func (n *network) writable() error {
	cni := filepath.Join(n.StateDir, "cni")
	dirs := []string{cni, podrecord.Dir(n.StateDir)}
	if n.IPAM == nil {
		dirs = append(dirs, filepath.Join(cni, "ipam", n.Name))
	}
	if n.Mode == ModeBridge {
		dirs = append(dirs, filepath.Dir(bridgePath(n.StateDir, "")))
	}
	for i, dir := range dirs {
		for !isThere(dir) {
			dir = filepath.Dir(dir) // ADD makes it
		}
		dirs[i] = dir
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := tryWrite(dir); err != nil {
			return stateFailure(n.StateDir, err)
		}
	}
	return nil
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// tryWrite writes as much as an ADD does, a record and an address of each family, and takes it away.
func tryWrite(dir string) error {
	const blocks, size = 4, 4096
	f, err := os.OpenFile(dir, os.O_WRONLY|unix.O_TMPFILE, 0o600) // a file without a name: a kill leaves nothing
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		if f, err = os.CreateTemp(dir, ".status-*.tmp"); err == nil {
			err = os.Remove(f.Name())
		}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, blocks*size))
	return errors.Join(err, f.Close())
}
