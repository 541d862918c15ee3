package ratelog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	log := slog.New(New(slog.NewTextHandler(&out, nil), Options{
		Burst: 2, Interval: time.Minute, Now: func() time.Time { return now },
	}))
	for i := range 10 {
		log.Warn("again", "i", i)
	}
	log.With("peer", "b").Warn("again") // the same message under another name
	log.Info("again")                   // another level
	log.Warn("other")
	now = now.Add(time.Minute)
	log.Warn("again", "i", "late")
	got := out.String()
	if n := strings.Count(got, "level=WARN msg=again"); n != 3 {
		t.Errorf("%d records passed, want 3:\n%s", n, got)
	}
	if !strings.Contains(got, "i=late suppressed=9") || !strings.Contains(got,
		"level=INFO msg=again") || !strings.Contains(got, "msg=other") {
		t.Error(got)
	}
}

func TestHandlerIsBounded(t *testing.T) {
	h := New(slog.DiscardHandler, Options{Burst: 1, Interval: time.Hour})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2 * maxMessages {
				h.state.take(key{message: fmt.Sprint(g, i)})
			}
		})
	}
	wg.Wait()
	if n := len(h.state.seen); n > maxMessages {
		t.Errorf("%d messages remembered", n)
	}
}
