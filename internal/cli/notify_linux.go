package cli

import (
	"log/slog"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells whoever started the program and asked for it (systemd, Type=notify) what state it is in, see
// sd_notify(3).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager was not told about the daemon's state", "state", state, "error", err)
	}
}
