package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// goProgram is a program of others that the Go module proxy has.
type goProgram struct {
	module   string
	packages []string // below the module; empty for the module itself
	// versions are tried in this order. A release can be beyond reach: it asks for a newer Go than this, or the proxy
	// lacks a module that it needs.
	versions []string
}

// install builds the program below dir, once for each version, and returns the version and the directory of its
// binaries, which are named after the last elements of their packages.
func (g goProgram) install(ctx context.Context, dir string) (version, bin string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	var errs []error
	for _, version := range g.versions {
		bin := filepath.Join(dir, path.Base(g.module)+"-"+version)
		err := g.installVersion(ctx, version, bin)
		if err == nil {
			return version, bin, nil
		}
		if ctx.Err() != nil {
			return "", "", ctx.Err()
		}
		errs = append(errs, err)
	}
	return "", "", errors.Join(errs...)
}

func (g goProgram) installVersion(ctx context.Context, version, bin string) error {
	packages := g.packages
	if len(packages) == 0 {
		packages = []string{""}
	}
	args := []string{"install"}
	missing := false
	for _, p := range packages {
		p = path.Join(g.module, p)
		args = append(args, p+"@"+version)
		_, err := os.Stat(filepath.Join(bin, path.Base(p)))
		missing = missing || err != nil
	}
	if !missing {
		return nil
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("directory for %s: %w", g.module, err)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		const keep = 600 // the end says why
		return errors.Join(fmt.Errorf("building %s %s: %w: %s", g.module, version, err, out[max(0, len(out)-keep):]),
			os.RemoveAll(bin))
	}
	return nil
}
