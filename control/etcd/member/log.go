package member

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"go.uber.org/zap/zapcore"
)

// A zapCore hands what etcd logs on to slog, at a lower level: its warnings, such as that a disk or a peer is slow, are
// of interest to who looks for a fault in it, and its errors are not this process's.
type zapCore struct {
	log     *slog.Logger
	fields  []zapcore.Field
	closing *atomic.Bool // set while the server is closed: its listeners that are gone are errors to it
}

var _ zapcore.Core = (*zapCore)(nil)

func (c *zapCore) levelOf(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel && !c.closing.Load() {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Enabled implements zapcore.Core.
func (c *zapCore) Enabled(l zapcore.Level) bool {
	// Its debug level is a line for each request.
	return l > zapcore.DebugLevel && c.log.Enabled(context.Background(), c.levelOf(l))
}

// With implements zapcore.Core.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{log: c.log, closing: c.closing, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// Check implements zapcore.Core.
func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	r := slog.NewRecord(time.Now(), c.levelOf(e.Level), e.Message, 0)
	for k, v := range enc.Fields {
		r.AddAttrs(slog.Any(k, v))
	}
	return c.log.Handler().Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (c *zapCore) Sync() error { return nil }
