// Package atomicfile writes small state files so that a reader, and a machine that lost power, sees either the whole
// new content, the whole old content, or no file: never a half one. Everything is written to a temporary file in the
// same directory, flushed, and moved into place.
//
// The temporary file of a path has one fixed name, so a killed writer leaves at most one behind, and the next writer of
// the same path removes it. Writers of one path must exclude each other (Warren's hold a lock); readers need nothing.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// suffix marks temporary files. They begin with a dot as well, so that no state file can have such a name.
const suffix = ".tmp"

// Temp is the path of the temporary file through which path is written.
func Temp(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+suffix)
}

// IsTemp reports whether name (without its directory) is that of a temporary file of this package.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, suffix)
}

// Replace writes data to path, over what is there, with the permissions perm whatever the umask is. When it returns
// nil, the content survives a loss of power.
func Replace(path string, data []byte, perm fs.FileMode) error {
	temp, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return SyncDir(filepath.Dir(path))
}

// Create writes data to path, which must not exist: an error for which errors.Is(err, fs.ErrExist) holds says that it
// did, and leaves it as it was. It uses link(2), which unlike rename never replaces. After a loss of power the file is
// there whole, or not at all: the directory is not flushed. What a file says of a thing that a loss of power ends (a
// pod, an address that it has) need not outlive it.
func Create(path string, data []byte, perm fs.FileMode) error {
	temp, err := writeTemp(path, data, perm)
	if err != nil {
		return err
	}
	linkErr := os.Link(temp, path)
	if err := os.Remove(temp); err != nil && linkErr == nil {
		return fmt.Errorf("removing the temporary file: %w", err)
	}
	return linkErr
}

// Remove removes path and its temporary file, and flushes the directory. A path that is not there is no error.
func Remove(path string) error {
	removed := false
	for _, p := range []string{Temp(path), path} {
		switch err := os.Remove(p); {
		case err == nil:
			removed = true
		case !errors.Is(err, fs.ErrNotExist) && isThere(p):
			return err
		}
	}
	if !removed {
		return nil
	}
	return SyncDir(filepath.Dir(path))
}

// isThere is for an error of a removal: a read-only file system gives the same one for what is not there.
func isThere(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// SyncDir makes the directory's entries survive a loss of power.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeTemp writes the flushed temporary file of path. A leftover of a killed writer is unlinked, not truncated: it may
// be a second link to a file that Create had put in place just before.
func writeTemp(path string, data []byte, perm fs.FileMode) (string, error) {
	temp := Temp(path)
	create := func() (*os.File, error) { return os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm) }
	f, err := create()
	if errors.Is(err, fs.ErrExist) {
		if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		f, err = create()
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil && perm&0o077 != 0 { // what others may do is what the umask takes away
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(temp))
	}
	return temp, nil
}
