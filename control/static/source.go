package static

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/yamldoc"
)

// maxFile bounds what is read, in bytes: a node's entry takes some 150, so this is far above any cluster.
const maxFile = 16 << 20

// ErrWatch marks problems of noticing changes at once; the state itself is not concerned.
var ErrWatch = errors.New("changes are noticed by looking every few seconds")

// Options say what a Source watches.
type Options struct {
	Path string

	// Load turns the file's content into a state. Whoever keeps more than the cluster in the file passes a function of
	// its own; nil: the file holds `cluster` and `nodes` alone. It is called from Run's goroutine only.
	Load func(data []byte) (control.State, error)

	// Debounce is how long the file has to stay quiet before it is read, because editors write in steps;
	// 0: 50 milliseconds.
	Debounce time.Duration

	// Poll is how often the file is compared without an event, because NFS and 9p deliver none, and neither does a
	// directory that was replaced; 0: 5 seconds.
	Poll time.Duration
}

// A Source is the control.Source over a file. Run may be called once; Reload is safe for concurrent use.
type Source struct {
	opt    Options
	reload chan struct{}
}

var _ control.Source = (*Source)(nil)

// New makes a source; nothing is read before Run.
func New(opt Options) *Source {
	if opt.Debounce == 0 {
		opt.Debounce = 50 * time.Millisecond
	}
	if opt.Poll == 0 {
		opt.Poll = 5 * time.Second
	}
	if opt.Load == nil {
		path := opt.Path
		opt.Load = func(data []byte) (control.State, error) {
			var spec Spec
			doc, err := yamldoc.Decode(path, data, &spec)
			if err != nil {
				return control.State{}, err
			}
			cluster, err := spec.Build(doc)
			if err != nil {
				return control.State{}, err
			}
			return cluster.State, nil
		}
	}
	return &Source{opt: opt, reload: make(chan struct{}, 1)}
}

// Reload has Run read the file now and send its state even when the content did not change. It does not wait.
func (s *Source) Reload() {
	select {
	case s.reload <- struct{}{}:
	default: // one is waiting already, and it will see the same file
	}
}

// A reader remembers what the file held last, good or bad, so that each content is judged once.
type reader struct {
	data []byte
	err  error
	seen bool
}

// A sink is where a source's findings go.
type sink struct {
	updates chan<- control.Update
	problem func(error)
}

// Run implements control.Source. It reads the file at once, and returns only when ctx ends: a file that is missing or
// bad is reported once for each content and awaited.
func (s *Source) Run(ctx context.Context, updates chan<- control.Update, problem func(error)) error {
	w := newWatcher(s.opt.Path, problem)
	defer w.close()

	var last reader
	out := sink{updates, problem}
	s.read(ctx, &last, out)
	poll := time.NewTicker(s.opt.Poll)
	defer poll.Stop()
	quiet := time.NewTimer(0)
	if !quiet.Stop() {
		<-quiet.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.events():
			if !ok {
				w.close()
				continue
			}
			quiet.Reset(s.opt.Debounce)
			continue
		case _, ok := <-w.errors():
			if !ok {
				w.close()
				continue
			}
			// Most often an overflow of the event queue: what was missed is found by reading.
			quiet.Reset(s.opt.Debounce)
			continue
		case <-quiet.C:
		case <-poll.C:
		case <-s.reload:
			last.seen = false
		}
		s.read(ctx, &last, out)
		w.follow()
	}
}

// read reads the file, and sends or reports what it holds when that is news.
func (s *Source) read(ctx context.Context, last *reader, out sink) {
	data, err := ReadFile(s.opt.Path)
	if last.seen && bytes.Equal(data, last.data) && errorText(err) == errorText(last.err) {
		return
	}
	*last = reader{data: data, err: err, seen: true}
	var state control.State
	if err == nil {
		state, err = s.opt.Load(data)
	}
	if err != nil {
		out.problem(err)
		return
	}
	select {
	case out.updates <- control.Update{Whole: true, Nodes: state.Nodes}:
	case <-ctx.Done():
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// ReadFile reads a configuration file whole. Its errors say what to do.
func ReadFile(path string) ([]byte, error) {
	// O_NONBLOCK: opening a named pipe would wait for its writer forever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, &yamldoc.Error{File: path, Why: "there is no such file",
			Fix: "name another with --config, or write this one"}
	case errors.Is(err, os.ErrPermission):
		return nil, &yamldoc.Error{File: path, Why: "the file cannot be read: permission denied",
			Fix: "run as root, or give this user the right to read it"}
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, &yamldoc.Error{File: path, Why: "is not a regular file", Fix: "name the YAML file itself"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxFile {
		return nil, &yamldoc.Error{File: path, Why: fmt.Sprintf("is longer than %d bytes", maxFile),
			Fix: "is it the right file?"}
	}
	return data, nil
}

// A watcher tells when something changed in the file's directory. The directory is watched, not the file: a rename
// over the file or a swap of the symbolic link ..data in a Kubernetes ConfigMap replaces the inode. Where the file is
// a link into another directory, that directory is watched as well.
type watcher struct {
	fs     *fsnotify.Watcher
	path   string
	target string // the directory the link leads to, when it is another one
}

func newWatcher(path string, problem func(error)) *watcher {
	w := &watcher{path: path}
	fs, err := fsnotify.NewWatcher()
	if err == nil {
		if err = fs.Add(filepath.Dir(path)); err != nil {
			_ = fs.Close()
		}
	}
	if err != nil {
		problem(fmt.Errorf("watch %s: %w; %w", filepath.Dir(path), err, ErrWatch))
		return w
	}
	w.fs = fs
	w.follow()
	return w
}

// follow moves the second watch to the directory where the file's link leads now, and renews the first one, which the
// kernel drops when the directory is replaced. Adding what is there already changes nothing.
func (w *watcher) follow() {
	if w.fs == nil {
		return
	}
	// What cannot be watched is still looked at every few seconds.
	_ = w.fs.Add(filepath.Dir(w.path))
	target := ""
	if real, err := filepath.EvalSymlinks(w.path); err == nil && filepath.Dir(real) != filepath.Dir(w.path) {
		target = filepath.Dir(real)
	}
	if target == w.target {
		return
	}
	if w.target != "" {
		_ = w.fs.Remove(w.target)
	}
	if target != "" && w.fs.Add(target) != nil {
		target = ""
	}
	w.target = target
}

func (w *watcher) events() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

func (w *watcher) errors() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
		w.fs = nil
	}
}
