package hostnet

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// WatchOptions adjusts Watch; the zero value has sensible defaults.
type WatchOptions struct {
	Log      *slog.Logger                   // nil: no log
	Debounce time.Duration                  // events that come within it are answered at once; 0: 100 ms
	Interval time.Duration                  // between checks without an event, for what makes none (sysctls); 0: 30 s
	Applied  func(c Changes, problem error) // called after every Apply, from Watch's goroutine; may be nil
	Lock     sync.Locker                    // held from get to the end of Apply; may be nil
	Nodes    *Nodes                         // whose changes are no reason to look; may be nil
}

// When somebody else undoes what Warren sets up again and again, Watch slows down so as not to take part in a race.
const (
	fightWindow = 10 * time.Second
	fightLimit  = 5  // changes in a row, each less than fightWindow after the one before
	fightFactor = 20 // of WatchOptions.Debounce
)

// Watch applies the Spec that get returns whenever the kernel's state may have changed: somebody flushed routes, rules
// or nftables, or the device went away and came back. It starts with an Apply, and runs in the calling goroutine (hence
// in its thread's network namespace) until ctx ends. The error says why events can't be had; Applied hears of problems
// with applying, which do not end it.
func Watch(ctx context.Context, get func() Spec, o WatchOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Debounce == 0 {
		o.Debounce = 100 * time.Millisecond
	}
	if o.Interval == 0 {
		o.Interval = 30 * time.Second
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wake := make(chan struct{}, 1)
	device := get().Device // once: link events are many, and a device does not change its name while it is served
	var far hopAddrs
	wanted := get
	get = func() Spec {
		s := wanted()
		far.set(s.Direct)
		return s
	}
	undone, moved := routeEvent(func() string { return device }), far.event()
	either := func(m syscall.NetlinkMessage) bool { return undone(m) || moved(m) }
	err := listen(ctx, unix.NETLINK_ROUTE, wake, either,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF,
		unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return err
	}
	// A kernel without nftables has no such events, and nothing that they could tell.
	foreign := func(m syscall.NetlinkMessage) bool { return nftEvent(m) && !o.Nodes.made(m) }
	if err := listen(ctx, unix.NETLINK_NETFILTER, wake, foreign, unix.NFNLGRP_NFTABLES); err != nil {
		o.Log.Debug("no nftables events", "error", err)
	}

	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	var fight fightCounter
	var last string
	for {
		c, err := o.apply(get)
		if o.Applied != nil {
			o.Applied(c, err)
		}
		// A problem that stays is said once, not every half minute.
		if text := problemText(err); text != last {
			last = text
			if err != nil {
				o.Log.Warn("network set-up is incomplete", "error", err)
			}
		}
		delay := o.Debounce
		if c.mended() && fight.add(time.Now()) {
			delay *= fightFactor
			o.Log.Warn("somebody keeps undoing Warren's network set-up; slowing down", "delay", delay,
				"hint", "systemd-networkd: set ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no in networkd.conf")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-wake:
		}
		if !sleep(ctx, delay) {
			return nil
		}
		// What came meanwhile is answered by the Apply that follows.
		select {
		case <-wake:
		default:
		}
	}
}

func (o *WatchOptions) apply(get func() Spec) (Changes, error) {
	if o.Lock != nil {
		o.Lock.Lock()
		defer o.Lock.Unlock()
	}
	return Apply(get(), o.Log)
}

func problemText(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, ErrNoDevice) {
		return ErrNoDevice.Error() // the rest changes as the kernel takes things along
	}
	return err.Error()
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// A fightCounter counts changes that come in a row.
type fightCounter struct {
	last time.Time
	n    int
}

// add counts one and reports whether there were too many in a short time.
func (f *fightCounter) add(now time.Time) bool {
	if now.Sub(f.last) > fightWindow {
		f.n = 0
	}
	f.last = now
	f.n++
	return f.n > fightLimit
}
