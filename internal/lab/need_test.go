package lab

import (
	"fmt"
	"strings"
	"testing"
)

func TestNeedRoot(t *testing.T) {
	NeedRoot(t)
	if err := CheckPrivileges(); err != nil {
		t.Fatalf("NeedRoot returned, yet %v", err)
	}
}

func TestNeedTool(t *testing.T) {
	NeedTool(t, "sh", "dash")
	t.Setenv(RequireRootEnv, "1")
	ran := false
	f := &failing{TB: t}
	func() {
		defer func() { _ = recover() }()
		NeedTool(f, "warren-no-such-tool", "nothing")
		ran = true
	}()
	if ran || !strings.Contains(f.said, "install nothing") {
		t.Errorf("a missing tool does not fail a test that must not be skipped: %q", f.said)
	}
}

// A failing test is one that ends by a panic, and says why.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	panic(f.said)
}
