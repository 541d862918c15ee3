package member

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
)

// TestSpace holds that a disk that is full, and what etcd panics of, is an error and not the node's end.
func TestSpace(t *testing.T) {
	dir := t.TempDir()
	if err := hasSpace(dir, 1); err != nil {
		t.Error(err)
	}
	if err := hasSpace(dir, 1<<62); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
	if _, err := start(&embed.Config{Dir: dir}, &Options{StateDir: dir}, make(fatalities, 1)); err == nil {
		t.Error("an etcd without a configuration was started")
	}
}
