package key

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/atomicfile"
)

// The files of a ring in its directory. Each holds one private key as `wg genkey` prints it.
const (
	File         = "wireguard.key"          // the newest key
	PreviousFile = "wireguard.key.previous" // the one before it, while a rotation is under way
)

// Errors on which callers decide.
var (
	ErrNone       = errors.New("there is no key yet")
	ErrRotating   = errors.New("a rotation is under way")
	ErrNoRotation = errors.New("no rotation is under way")
)

// A Ring is the private keys of a node, the newest first: one, or two while a rotation is under way. The peers know the
// node by the public half of one of them, so it answers to both.
//
// Every state of the files that a killed process can leave is one that Load takes and that Rotate and Finish go on
// from. Processes that change the files exclude each other by a lock on the directory; Load needs none.
type Ring struct{ Keys []Private }

// Newest is the key that peers are to know the node by. The ring must come from one of this package's functions.
func (r Ring) Newest() Private { return r.Keys[0] }

// Rotating reports whether there is a previous key as well.
func (r Ring) Rotating() bool { return len(r.Keys) > 1 }

// Load reads the ring in dir. The error is ErrNone when there is none.
func Load(dir string) (Ring, error) {
	// In this order: what a rotation in between replaces, it has made the previous one.
	newest, err := readRing(filepath.Join(dir, File))
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return Ring{}, err
	}
	previous, err := readRing(filepath.Join(dir, PreviousFile))
	switch {
	case errors.Is(err, os.ErrNotExist) && missing:
		return Ring{}, fmt.Errorf("%s: %w", filepath.Join(dir, File), ErrNone)
	case errors.Is(err, os.ErrNotExist):
		return Ring{Keys: []Private{newest}}, nil
	case err != nil:
		return Ring{}, err
	case missing:
		path := filepath.Join(dir, File)
		return Ring{}, fmt.Errorf("%s is gone, but %s is there: put the first one back, or go on with the other: mv %s %s",
			path, PreviousFile, filepath.Join(dir, PreviousFile), path)
	case newest == previous: // Rotate was killed before it came to the new key
		return Ring{Keys: []Private{newest}}, nil
	}
	return Ring{Keys: []Private{newest, previous}}, nil
}

// LoadOrCreate reads the ring in dir, and makes a directory and a key where there is none: made says so. Of several
// processes that find none, one makes it and the others read it.
func LoadOrCreate(dir string) (ring Ring, made bool, err error) {
	if ring, err = Load(dir); !errors.Is(err, ErrNone) {
		return ring, false, err
	}
	if err := makeDir(dir); err != nil {
		return Ring{}, false, err
	}
	err = locked(dir, func() error {
		if ring, err = Load(dir); !errors.Is(err, ErrNone) {
			return err
		}
		ring, made = Ring{Keys: []Private{NewPrivate()}}, true
		// Create never replaces, as somebody may put a file there without the lock.
		if err := atomicfile.Create(filepath.Join(dir, File), content(ring.Newest()), 0o600); err != nil {
			return fmt.Errorf("write the new key: %w", err)
		}
		return atomicfile.SyncDir(dir)
	})
	if err != nil {
		return Ring{}, false, err
	}
	return ring, made, nil
}

// Rotate makes the ring's next key; the one that was the newest stays beside it until Finish. The error is ErrRotating
// while the last rotation is not finished.
func Rotate(dir string) (ring Ring, err error) {
	err = locked(dir, func() error {
		if ring, err = Load(dir); err != nil {
			return err
		}
		if ring.Rotating() {
			return fmt.Errorf("%w: this node's publicKey is to be %s on all nodes; when it is, finish with "+
				"`warren key rotate --finish`", ErrRotating, ring.Newest().Public())
		}
		// First the old key to its new place, so that it is never lost.
		if err := atomicfile.Replace(filepath.Join(dir, PreviousFile), content(ring.Newest()), 0o600); err != nil {
			return fmt.Errorf("keep the previous key: %w", err)
		}
		ring.Keys = slices.Insert(ring.Keys, 0, NewPrivate())
		if err := atomicfile.Replace(filepath.Join(dir, File), content(ring.Newest()), 0o600); err != nil {
			return fmt.Errorf("write the new key: %w", err)
		}
		return nil
	})
	if err != nil {
		return Ring{}, err
	}
	return ring, nil
}

// Finish takes the previous key away. The error is ErrNoRotation when there is none.
func Finish(dir string) (ring Ring, err error) {
	err = locked(dir, func() error {
		if ring, err = Load(dir); err != nil {
			return err
		}
		if !ring.Rotating() {
			return fmt.Errorf("%w: `warren key rotate` begins one", ErrNoRotation)
		}
		ring.Keys = ring.Keys[:1]
		if err := atomicfile.Remove(filepath.Join(dir, PreviousFile)); err != nil {
			return fmt.Errorf("remove the previous key: %w", err)
		}
		return nil
	})
	if err != nil {
		return Ring{}, err
	}
	return ring, nil
}

// readRing reads one of the ring's files.
func readRing(path string) (Private, error) {
	p, err := LoadPrivate(path)
	if errors.Is(err, ErrFormat) {
		err = fmt.Errorf("%w; put the file back from a backup, or move it away, make a new key with `warren key new` and "+
			"give its public half to all nodes", err)
	}
	return p, err
}

func content(p Private) []byte { return []byte(p.RevealText() + "\n") }

// makeDir makes the directory, such that it survives a loss of power as the key in it does.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory for the key: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

// locked calls f while no other process changes the ring. The lock is the directory's own, and ends with the process.
func locked(dir string, f func() error) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Join(dir, File), ErrNone)
	}
	if err != nil {
		return fmt.Errorf("directory of the key: %w", err)
	}
	defer d.Close()
	for {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock the directory of the key %s: %w", dir, err)
	}
	return f()
}
