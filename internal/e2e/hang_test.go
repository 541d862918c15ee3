package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-net/warren/internal/lab"
)

// bounded is more than a command of the plugin may take while the daemon hangs; STATUS waits five seconds for it.
const bounded = 20 * time.Second

// TestDaemonThatHangs stops the daemon with SIGSTOP: it holds its device, its socket and its locks, and does nothing.
// STATUS says so soon, and no other command of the plugin waits for it. When it goes on, everything works, also for
// pods that were added meanwhile.
func TestDaemonThatHangs(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, mode)
			o := lab.PodOptions{Mode: mode}
			p.talks()
			p.ready(p.a)
			daemon := p.a.Daemon()
			p.ok(daemon.Signal(syscall.SIGSTOP))

			begin := time.Now()
			err := p.cniStatus(p.a)
			var e *types.Error
			mend := fmt.Sprintf("is stopped, by a signal or a debugger; let it go on with `kill -CONT %d`", daemon.Pid())
			if !errors.As(err, &e) || e.Code != types.ErrPluginNotAvailable || !strings.Contains(e.Msg, mend) {
				t.Errorf("STATUS says %v, want code %d and %q", err, types.ErrPluginNotAvailable, mend)
			}
			if took := time.Since(begin); took > bounded {
				t.Errorf("STATUS took %v", took)
			}
			ctx, cancel := context.WithTimeout(p.ctx, bounded)
			defer cancel()
			added, err := p.a.AddPod(ctx, "3", o)
			p.ok(err)
			p.ok(added.Check(ctx, o))
			p.ok(reaches(ctx, p.a, added))
			p.ok(p.a2.Delete(ctx, o)) // which was there before
			p.a2 = added

			p.ok(daemon.Signal(syscall.SIGCONT))
			p.talks()
			p.ready(p.a)
			for _, pod := range []*lab.Pod{p.a1, p.a2} {
				p.ok(pod.Check(p.ctx, o))
				p.ok(pod.Delete(p.ctx, o))
			}
		})
	}
}
