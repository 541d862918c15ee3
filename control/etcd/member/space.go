package member

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// Space that has to be free, in bytes. A new member writes its database and two files of its log at once, each of them
// allocated as a whole; one that has them needs room to go on.
const (
	spaceNew   = 160 << 20
	spaceGoing = 8 << 20
)

// ErrGaveUp says that etcd came to where it ends its process, as with a disk that is full.
var ErrGaveUp = errors.New("it gave up")

// fatalities take what etcd's logger would end the process with. The goroutine that says so is held for ever, as its
// caller must not go on; what it has locked stays locked.
type fatalities chan error

var _ zapcore.CheckWriteHook = fatalities(nil)

// OnWrite implements zapcore.CheckWriteHook.
func (f fatalities) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := fmt.Errorf("%w: %s", ErrGaveUp, ce.Message)
	for _, field := range fields {
		if cause, ok := field.Interface.(error); ok && field.Type == zapcore.ErrorType {
			err = fmt.Errorf("%w: %w", err, cause)
		}
	}
	select {
	case f <- err:
	default: // the first one is the cause
	}
	select {}
}

// start starts the etcd. Where the disk is full etcd panics, and the node, which could go on, would end with it.
func start(cfg *embed.Config, o *Options, broken fatalities) (*embed.Etcd, error) {
	need := uint64(spaceGoing)
	if !HasData(o.StateDir) {
		need = spaceNew
	}
	if err := hasSpace(cfg.Dir, need); err != nil {
		return nil, err
	}
	type result struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("%w: %v: is %s in order?", ErrGaveUp, p, cfg.Dir)
			}
			started <- r
		}()
		r.server, r.err = embed.StartEtcd(cfg)
	}()
	select {
	case r := <-started:
		return r.server, r.err
	case err := <-broken:
		return nil, fmt.Errorf("%w: is %s in order?", err, cfg.Dir)
	}
}

// CheckSpace refuses a state directory, which need not be there yet, without the room that a new member needs.
func CheckSpace(stateDir string) error {
	dir := dataDir(stateDir)
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return hasSpace(dir, spaceNew)
}

// hasSpace checks that so many bytes can be written below dir.
func hasSpace(dir string, need uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < need { //nolint:gosec // a size is not negative
		return fmt.Errorf("%s has %d MiB of free space, and %d MiB are needed: make room there, or use another --state-dir",
			dir, free>>20, need>>20)
	}
	return nil
}
