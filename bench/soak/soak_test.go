package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

const testPrefix = "soaktest"

// TestSoak has everything happen for a moment, with all checks but the trends.
func TestSoak(t *testing.T) {
	result, err := Run(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := result.Write(t.Output()); err != nil {
		t.Error(err)
	}
	for _, f := range result.Failures {
		t.Error(f)
	}
	nothingLeft(t)
}

// TestInterrupted ends a soak while everything runs.
func TestInterrupted(t *testing.T) {
	c := testConfig(t)
	c.Duration = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	begin := time.Now()
	if _, err := Run(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v to end", took)
	}
	nothingLeft(t)
}

func testConfig(t *testing.T) Config {
	lab.NeedRoot(t)
	bin := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building Warren: %v\n%s", err, out)
	}
	return Config{Duration: MinDuration, BinDir: bin, Prefix: testPrefix, Progress: t.Output()}
}

func nothingLeft(t *testing.T) {
	t.Helper()
	left, err := lab.Remains(testPrefix)
	if err != nil {
		t.Error(err)
	}
	for _, name := range left {
		// What this process made is named after it; others' runs are not this test's business.
		if strings.Contains(name, fmt.Sprint(os.Getpid())) {
			t.Errorf("left behind: %s", name)
		}
	}
}
