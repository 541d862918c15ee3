// Package ratelog keeps a log readable while something goes wrong thousands of times a second: of records with the same
// level and message it lets a few through in each interval, and says with the next one how many it kept back.
//
// A Handler is safe for concurrent use.
package ratelog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Options of a Handler.
type Options struct {
	Burst    int              // records of one message that pass in each interval
	Interval time.Duration    //
	Now      func() time.Time // nil: time.Now
}

// maxMessages bounds the memory: messages are constants in the code, so there are far fewer.
const maxMessages = 1024

// A Handler passes records on to another one.
type Handler struct {
	next  slog.Handler
	state *state // shared by the handlers that WithAttrs and WithGroup derive
}

var _ slog.Handler = (*Handler)(nil)

type state struct {
	Options
	mu   sync.Mutex
	seen map[key]*bucket
}

type key struct {
	level   slog.Level
	message string
}

type bucket struct {
	since      time.Time
	passed     int
	suppressed int
}

// New wraps next.
func New(next slog.Handler, opt Options) *Handler {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &Handler{next: next, state: &state{Options: opt, seen: map[key]*bucket{}}}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	pass, suppressed := h.state.take(key{r.Level, r.Message})
	if !pass {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return h.next.Handle(ctx, r)
}

func (s *state) take(k key) (pass bool, suppressed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	b := s.seen[k]
	if b == nil {
		if len(s.seen) >= maxMessages {
			clear(s.seen)
		}
		b = &bucket{since: now}
		s.seen[k] = b
	}
	if now.Sub(b.since) >= s.Interval {
		suppressed = b.suppressed
		*b = bucket{since: now}
	}
	if b.passed >= s.Burst {
		b.suppressed++
		return false, 0
	}
	b.passed++
	return true, suppressed
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{next: h.next.WithAttrs(attrs), state: h.state}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{next: h.next.WithGroup(name), state: h.state}
}
