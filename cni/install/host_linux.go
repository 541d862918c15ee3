package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// lock keeps other installers out of both directories. It locks the directories themselves: nothing is left behind, and
// a killed installer holds nothing.
func (d Dirs) lock() (unlock func(), err error) {
	var held []*os.File
	unlock = func() {
		for _, f := range held {
			_ = f.Close()
		}
	}
	for _, dir := range []string{d.Conf, d.Bin} {
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // nothing to remove there; Install has checked both
		}
		if err == nil && isOneOf(f, held) { // the other directory by another name
			_ = f.Close()
			continue
		}
		if err == nil {
			held = append(held, f)
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if err != nil {
			unlock()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("another `warren cni` is at work in %s: wait for its end", dir)
			}
			return nil, explain(dir, err)
		}
	}
	return unlock, nil
}

func isOneOf(f *os.File, others []*os.File) bool {
	info, err := f.Stat()
	return err == nil && slices.ContainsFunc(others, func(other *os.File) bool {
		have, err := other.Stat()
		return err == nil && os.SameFile(info, have)
	})
}

// explain adds what to do. Whatever failed, the file is as it was before.
func explain(path string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = ": make room there and try again; what was there before is unchanged"
	case errors.Is(err, unix.EROFS):
		hint = ": mount it writable, or name the runtime's other directory with --bin-dir or --conf-dir"
	case errors.Is(err, fs.ErrPermission):
		hint = ": run it as root; for root, `lsattr` and the security module's log may tell more"
	}
	return fmt.Errorf("%s: %w%s", path, err, hint)
}
