package key

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// LoadPreshared reads a preshared key as `wg genpsk` prints it, from a file that only this process's user can read.
func LoadPreshared(path string) (Preshared, error) {
	text, err := readSecret(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: put the other side's there, or make one for both: (umask 077; wg genpsk > %s)", err, path)
	}
	if err != nil {
		return Preshared{}, err
	}
	p, err := ParsePreshared(text)
	if err == nil && p.IsZero() {
		err = fmt.Errorf("the key is zero, which is none: %w", ErrFormat)
	}
	if err != nil {
		return Preshared{}, fmt.Errorf("%s holds no key: %w; make one with `wg genpsk`", path, err)
	}
	return p, nil
}

// LoadPrivate reads a private key as `wg genkey` prints it, from a file that only this process's user can read. The
// error wraps os.ErrNotExist when there is no file.
func LoadPrivate(path string) (Private, error) {
	text, err := readSecret(path)
	if err != nil {
		return Private{}, err
	}
	p, err := ParsePrivate(text)
	if err != nil {
		return Private{}, fmt.Errorf("%s holds no key: %w", path, err)
	}
	return p, nil
}

// readSecret reads the one line of a file that nobody else may be able to read. No error has a part of the content.
func readSecret(path string) (string, error) {
	// O_NONBLOCK: opening a named pipe would wait for its writer forever.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		return "", fmt.Errorf("%s is a symbolic link, and whoever can change what it leads to could change the key: put "+
			"the file itself there", path)
	case errors.Is(err, unix.EACCES):
		return "", fmt.Errorf("key file: %w: run it as root, or as the file's owner",
			&os.PathError{Op: "open", Path: path, Err: err})
	case err != nil:
		return "", fmt.Errorf("key file: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := checkOwner(f); err != nil {
		return "", err
	}
	const longest = 4096 // bytes; a key has 45 with its line feed
	data, err := io.ReadAll(io.LimitReader(f, longest))
	defer clear(data)
	if err != nil {
		return "", fmt.Errorf("key file: %w", err)
	}
	if len(data) == 0 {
		return "", fmt.Errorf("%s is empty: put the key back, or remove the file", path)
	}
	if n := len(data); data[n-1] == '\n' {
		return string(data[:n-1]), nil
	}
	return string(data), nil
}

// checkOwner refuses a file that others can read or have made.
func checkOwner(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("key file: %w", &os.PathError{Op: "stat", Path: f.Name(), Err: err})
	}
	mode := st.Mode & 0o7777
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is not a regular file: a key is in a file of its own, with mode 0600", f.Name())
	case mode&0o077 != 0:
		return fmt.Errorf("%s has mode %#o, so others than its owner may have the key: chmod 600 %s, and make a new one "+
			"unless you know that nobody read it", f.Name(), mode, f.Name())
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s has mode %#o and belongs to user %d, who can change it: chown %d %s", f.Name(), mode, st.Uid,
			os.Geteuid(), f.Name())
	}
	return nil
}
