package cni

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errBusy is the sentinel for a lock that another process kept for too long.
var errBusy = errors.New("another process is at work on it")

const (
	lockWait = 60 * time.Second // runtimes give a plugin some minutes at most
	lockPoll = 5 * time.Millisecond
)

// lock is a named lock in the state directory. All names share one file, of which each locks one byte (open file
// description locks, Linux 3.15): nothing is left to clean up, and a process that dies gives its locks back, unless a
// program that it executed lives on with them (handOn).
type lock struct {
	f  *os.File
	at int64 // the byte
}

// takeLock waits for the lock of a name: an attachment, or a bridge.
func takeLock(stateDir, name string) (*lock, error) {
	f, err := openLock(stateDir)
	if err != nil {
		return nil, stateFailure(stateDir, err)
	}
	return lockByte(f, unix.F_WRLCK, name, lockWait)
}

// lockToRemove takes the lock of a name for who only takes away, which has to be possible in a state directory that
// can't be changed as well, or is none any more: there the lock only keeps from meeting an ADD by which it still was,
// and if there is no lock file, nobody else is there either. wait may be 0.
func lockToRemove(stateDir, name string, wait time.Duration) (*lock, error) {
	f, err := openLock(stateDir)
	if err == nil {
		return lockByte(f, unix.F_WRLCK, name, wait)
	}
	if refused := stateFailure(stateDir, err); !frozen(refused) && !errors.Is(err, unix.ENOSPC) {
		return nil, refused
	}
	if f, err = os.Open(lockPath(stateDir)); err == nil {
		return lockByte(f, unix.F_RDLCK, name, wait) // all that a descriptor for reading can have
	}
	return &lock{}, nil
}

func lockPath(stateDir string) string { return filepath.Join(stateDir, "cni", "lock") }

// openLock opens the lock file, and makes it when there is none.
func openLock(stateDir string) (*os.File, error) {
	path := lockPath(stateDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock file: %w", err)
	}
	return f, nil
}

// lockByte takes a name's lock, of the given kind, and closes the file on an error.
func lockByte(f *os.File, kind int16, name string, wait time.Duration) (*lock, error) {
	sum := sha256.Sum256([]byte(name))
	at := int64(binary.BigEndian.Uint64(sum[:]) >> 2) // offsets are signed; two names on one byte only wait for each other
	for deadline := time.Now().Add(wait); ; time.Sleep(lockPoll) {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		switch {
		case err == nil:
			return &lock{f, at}, nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("locking %s in %s: %w", name, f.Name(), err), f.Close())
		case time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("%s: %w, for %s; try again", name, errBusy, wait), f.Close())
		}
	}
}

// lockAttachment takes the lock of an attachment, and hands it on.
func lockAttachment(stateDir, name string) (*lock, error) {
	l, err := takeLock(stateDir, name)
	if err != nil {
		return nil, err
	}
	if err := l.handOn(); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// handOn gives the lock to the programs that are executed meanwhile as well. An IPAM plugin that outlives a killed ADD
// holds it until its end, so that a DEL asks for what it gave only then.
func (l *lock) handOn() error {
	if l.f == nil {
		return nil
	}
	if _, err := unix.FcntlInt(l.f.Fd(), unix.F_SETFD, 0); err != nil { // no FD_CLOEXEC
		return fmt.Errorf("handing on the lock file: %w", err)
	}
	return nil
}

// release unlocks, as closing alone would not do while another process has the file from this one: what an IPAM plugin
// left running in the background holds nothing.
func (l *lock) release() {
	if l.f == nil {
		return
	}
	_ = unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: l.at, Len: 1})
	_ = l.f.Close()
}
