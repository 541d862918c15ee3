package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// ErrClosed is returned for anything that is asked of a lab after Close.
var ErrClosed = errors.New("the lab is closed")

// DefaultMTU is the underlay's MTU in bytes when Options leaves it open.
const DefaultMTU = 1500

// Options say what a lab is to be like.
type Options struct {
	// Prefix tells one kind of lab from another: 1 to 12 lower-case letters or digits. Namespaces are named
	// wrn-<Prefix>-<role>-<pid>, so a process can have one lab per prefix at a time.
	Prefix string
	MTU    int    // bytes, of the underlay; 0: DefaultMTU
	BinDir string // directory of the binaries warren and warren-cni; needed for daemons and pods only
}

// A Lab is an underlay with nodes on it. Its methods are safe for concurrent use.
type Lab struct {
	Dir     string // temporary directory: configuration, state, logs
	Options Options
	Outside *NS // the world beyond the nodes' default route: OutsideV4 and OutsideV6

	owner     owner
	mu        sync.Mutex
	spaces    []*NS
	procs     []*Proc
	nodes     []*Node
	onClose   []func() error
	lastIndex int // of the node added last, also when adding it failed
	sw        *NS // the switch: a bridge with a port per node
	closed    bool
}

// New makes a lab with its switch and its outside world, and no node yet. Leftovers of labs with the same prefix whose
// process is dead are removed first. The caller calls Close, also when it ends by a signal (CloseOnSignal).
func New(o Options) (*Lab, error) {
	if err := checkPrefix(o.Prefix); err != nil {
		return nil, err
	}
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if err := CheckPrivileges(); err != nil {
		return nil, err
	}
	if _, err := Sweep(o.Prefix, SweepAbandoned); err != nil {
		return nil, fmt.Errorf("removing what an earlier lab left: %w", err)
	}
	l := &Lab{Options: o}
	var err error
	if l.Dir, err = os.MkdirTemp("", dirPattern(o.Prefix, os.Getpid())); err != nil {
		return nil, fmt.Errorf("directory of the lab: %w", err)
	}
	if l.owner, err = newOwner(); err == nil {
		err = l.owner.write(l.Dir)
	}
	if err == nil {
		err = l.makeUnderlay()
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ForTest makes a lab for a test that ends with it. It needs root: see NeedRoot.
func ForTest(t testing.TB, o Options) *Lab {
	t.Helper()
	NeedRoot(t)
	l, err := New(o)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	stop := l.CloseOnSignal()
	t.Cleanup(func() {
		defer stop()
		if t.Failed() {
			for _, p := range l.procsNow() {
				t.Logf("log of %s:\n%s", p.Name, p.LogTail())
			}
		}
		if err := l.Close(); err != nil {
			t.Errorf("closing the lab: %v", err)
		}
	})
	return l
}

// CloseOnSignal closes the lab on SIGINT, SIGTERM or SIGHUP and lets the signal then end the process as it would have
// done by itself. The returned function ends the watch.
func (l *Lab) CloseOnSignal() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			if err := l.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "lab: %v\n", err)
			}
			signal.Reset(s)
			_ = syscall.Kill(os.Getpid(), s.(syscall.Signal))
		case <-done:
		}
	}()
	return sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
	})
}

// Close kills every process in the lab's namespaces, deletes the namespaces and the lab's directory. It goes on after
// an error and returns all of them. A second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var errs []error
	for _, p := range l.procs {
		errs = append(errs, p.Kill())
	}
	names := make([]string, len(l.spaces))
	for i, ns := range l.spaces {
		names[i] = ns.Name
	}
	errs = append(errs, removeAll(names))
	for _, f := range l.onClose {
		errs = append(errs, f())
	}
	return errors.Join(append(errs, os.RemoveAll(l.Dir))...)
}

// Keep marks the lab as one that stays when its process ends: Sweep spares it unless told otherwise.
func (l *Lab) Keep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owner.Kept = true
	l.closed = true // nothing is started any more, and Close has nothing to do
	return l.owner.write(l.Dir)
}

// AddNS makes a namespace that the lab removes with itself. The role is a part of its name: letters, digits, dashes.
func (l *Lab) AddNS(role string) (*NS, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("making namespace %s: %w", role, ErrClosed)
	}
	ns, err := newNS(nsName(l.Options.Prefix, role, os.Getpid()))
	if err != nil {
		return nil, err
	}
	l.spaces = append(l.spaces, ns)
	return ns, nil
}

// AdoptNS names a namespace that somebody else made, by its file, e.g. a pod's: it can then be used as the lab's own
// can, and lasts until ReleaseNS or the end of the lab.
func (l *Lab) AdoptNS(role, path string) (*NS, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("naming namespace %s: %w", role, ErrClosed)
	}
	ns, err := adoptNS(nsName(l.Options.Prefix, role, os.Getpid()), path)
	if err != nil {
		return nil, err
	}
	l.spaces = append(l.spaces, ns)
	return ns, nil
}

// ReleaseNS takes back the name that AdoptNS gave. What runs in the namespace goes on.
func (l *Lab) ReleaseNS(ns *NS) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spaces = slices.DeleteFunc(l.spaces, func(s *NS) bool { return s == ns })
	return removeNS(ns.Name)
}

// RemoveNS removes a namespace of the lab and the processes in it.
func (l *Lab) RemoveNS(ns *NS) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range l.spaces {
		if s == ns {
			l.spaces = append(l.spaces[:i:i], l.spaces[i+1:]...)
			return removeAll([]string{ns.Name})
		}
	}
	return nil
}

// removeAll kills what runs in the named namespaces and deletes them.
func removeAll(names []string) error {
	spaces := make(map[nsID]bool)
	for _, name := range names {
		// A name whose mount is gone is an ordinary file: no process can be inside.
		if id, err := identify(filepath.Join(netnsDir, name)); err == nil {
			spaces[id] = true
		}
	}
	errs := []error{killIn(spaces)}
	for _, name := range names {
		errs = append(errs, removeNS(name))
	}
	return errors.Join(errs...)
}

func (l *Lab) procsNow() []*Proc {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Proc(nil), l.procs...)
}

// Binary is the path of a Warren binary, or an error that says how to get it.
func (l *Lab) Binary(name string) (string, error) {
	path := filepath.Join(l.Options.BinDir, name)
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("no program %s: `make build` makes it (Options.BinDir is %q)", path, l.Options.BinDir)
	}
	return path, nil
}
