package member

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestRelay holds that what a member's process says reaches the node as it was said: its log, its start and its end.
func TestRelay(t *testing.T) {
	var wire, log bytes.Buffer
	w := &lineWriter{w: &wire}
	from := slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: readable}))
	w.tell(event{Event: eventStarted})
	from.Debug("too much")
	from.With("part", "etcd").Warn("it is slow", "took", 1500*time.Millisecond, "id", uint64(1)<<63, "error",
		errors.New("line one\nline two"), "event", eventStarted)
	if _, err := w.Write([]byte("a library prints\n[1]\n\n")); err != nil {
		t.Fatal(err)
	}
	w.tell(event{Event: eventEnded, Error: "why"})

	starts := 0
	o := Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Started: func() { starts++ }}
	last := o.relay(&wire)
	if last == nil || last.Error != "why" || last.Removed || starts != 1 {
		t.Errorf("%+v, %d starts", last, starts)
	}
	_, said, _ := strings.Cut(log.String(), " ")
	want := `level=WARN msg="it is slow" error="line one\nline two" event=started id=9223372036854775808 ` +
		"part=etcd took=1.5s\n"
	if said != want {
		t.Errorf("%s, want %s", said, want)
	}
}

// TestCrash holds that of a crash the reason is kept, and no more than there is room for.
func TestCrash(t *testing.T) {
	f := &firstBytes{left: 60}
	for _, text := range []string{"warning: x\n", "panic: runtime error: ", "index out of range\n\n",
		"goroutine 1 [running]:"} {
		if n, err := f.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	if err := f.reason(); err == nil || err.Error() != "panic: runtime error: index out of range" {
		t.Errorf("%v", err)
	}
	if f.b.Len() != 60 {
		t.Errorf("%d bytes", f.b.Len())
	}
	if err := (&firstBytes{left: 9}).reason(); err != nil {
		t.Error(err)
	}
}
