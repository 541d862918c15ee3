package member

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A node runs its member in a process of its own. etcd ends its process where it cannot go on, as with a full disk, and
// with it would end the node. What it holds then (locks of its files, mutexes, ports) nothing but the end of its
// process gives free, so that it could not be started again beside the node either.
//
// The node writes a begin to the process's standard input, and later stopWord. The process writes events and records of
// its log to its standard output, one JSON object a line. It ends at once when its standard input does, which is the
// end of the node's process, whatever that died of.

// A begin says what the process is to run.
type begin struct {
	Options Options `json:"options"`
}

// An event is what the process says beside its log.
type event struct {
	Event   string `json:"event"`
	Removed bool   `json:"removed,omitempty"` // of eventEnded: it was taken out of the etcd
	Error   string `json:"error,omitempty"`   // of eventEnded
}

const (
	eventStarted = "started"
	eventEnded   = "ended"

	stopWord = "stop"
)

// ErrLeftAlone says that the node's daemon, whose member this is, has ended.
var ErrLeftAlone = errors.New("the daemon of the node is gone")

// Serve runs a member as the daemon on the other side of in and out says, and returns when it has ended. The process
// has to be there for nothing else, and to end then: of a member that gave up something is left.
func Serve(in io.Reader, out io.Writer) error {
	// The daemon says when it ends. A terminal and a service manager send these to it as well.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("what is to be run: %w", err)
	}
	var b begin
	if err := json.Unmarshal(line, &b); err != nil {
		return fmt.Errorf("what is to be run: %w", err)
	}
	w := &lineWriter{w: out}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	o := b.Options
	o.Log = slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: readable}))
	o.Started = func() { w.tell(event{Event: eventStarted}) }
	alone := make(chan struct{})
	go func() {
		defer close(alone)
		for {
			word, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if strings.TrimSpace(word) == stopWord {
				stop()
			}
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	select {
	case <-alone:
		return ErrLeftAlone
	case err := <-ended:
		e := event{Event: eventEnded, Removed: errors.Is(err, ErrRemoved)}
		if err != nil {
			e.Error = err.Error()
		}
		w.tell(e)
		return nil
	}
}

// readable has durations read as such on the other side.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// A lineWriter keeps lines whole that several goroutines write.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (l *lineWriter) tell(e event) {
	data, err := json.Marshal(e)
	if err == nil {
		_, _ = l.Write(append(data, '\n')) // who does not listen any more is gone
	}
}

// stopWait is how long the process may take to end in order.
const stopWait = 20 * time.Second

// runApart is Run in a process of its own.
func runApart(ctx context.Context, program func() *exec.Cmd, o Options) error {
	data, err := json.Marshal(begin{o})
	if err != nil {
		return err
	}
	cmd := program()
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	said := &firstBytes{left: 16 << 10}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the member's process: %w", err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		// What cannot be written is the end of the process, which is noticed below.
		_, _ = in.Write(append(data, '\n'))
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_, _ = io.WriteString(in, stopWord+"\n")
		select {
		case <-ended:
		case <-time.After(stopWait):
			o.Log.Warn("this host's member of the etcd does not end in order, and is killed")
			_ = cmd.Process.Kill() // it may have ended
		}
	})
	last := o.relay(out)
	err = cmd.Wait()
	close(ended)
	wg.Wait()
	switch {
	case last == nil && ctx.Err() != nil:
		return nil
	case last == nil:
		if text := said.String(); text != "" {
			o.Log.Warn("what the member's process left", "text", text)
		}
		return fmt.Errorf("its process ended: %w", errors.Join(err, said.reason()))
	case last.Removed:
		return ErrRemoved
	case last.Error != "":
		return errors.New(last.Error)
	}
	return nil
}

// relay hands on what the process says until it says nothing more, and returns how it ended, if it said so.
func (o *Options) relay(out io.Reader) *event {
	var last *event
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return last
		}
		var e struct {
			event
			Level string `json:"level"` // of a record
		}
		switch err := json.Unmarshal(line, &e); {
		case err != nil: // not Warren's: a library that prints
		case e.Level != "":
			o.record(line)
		case e.Event == eventStarted:
			o.Started()
		case e.Event == eventEnded:
			last = &e.event
		}
	}
}

// record writes a record of the process's log into the node's.
func (o *Options) record(line []byte) {
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	var level slog.Level
	if d.Decode(&fields) != nil {
		return
	}
	text, _ := fields[slog.LevelKey].(string)
	if level.UnmarshalText([]byte(text)) != nil || !o.Log.Enabled(context.Background(), level) {
		return
	}
	message, _ := fields[slog.MessageKey].(string)
	var attrs []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if k != slog.LevelKey && k != slog.MessageKey && k != slog.TimeKey {
			attrs = append(attrs, slog.Any(k, fields[k]))
		}
	}
	o.Log.LogAttrs(context.Background(), level, message, attrs...)
}

// A firstBytes keeps the beginning of what is written to it: of a crash that says why.
type firstBytes struct {
	mu   sync.Mutex
	b    bytes.Buffer
	left int
}

func (f *firstBytes) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(p), f.left)
	f.b.Write(p[:n])
	f.left -= n
	return len(p), nil
}

func (f *firstBytes) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.TrimSpace(f.b.String())
}

// reason is the line that says why a program of Go crashed; nil: there is none.
func (f *firstBytes) reason() error {
	for line := range strings.Lines(f.String()) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return errors.New(line)
		}
	}
	return nil
}
