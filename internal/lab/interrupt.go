package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Interruptible returns a context for a program that has a lab to take down: the first SIGINT, SIGTERM, SIGHUP or
// SIGQUIT ends it, and is its cause. Later ones, which an impatient user or make sends, don't keep the lab from being
// taken down; a reader that went away (`make demo | head`) does not either. Call it once in a process.
func Interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() { cancel(fmt.Errorf("%v", <-signals)) }()
	return ctx, func() { cancel(nil) }
}
