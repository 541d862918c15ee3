package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// goProgram is a program of others that the Go module proxy has.
type goProgram struct {
	module   string
	packages []string // below the module; empty for the module itself
	// versions are tried in this order. A release can be beyond reach: it asks for a newer Go than this, or the proxy
	// lacks a module that it needs. Empty: the newest releases that the module has.
	versions []string
	// fallback is tried behind versions.
	fallback []string
}

// install builds the program below dir and returns the version and the directory of its binaries, which are named after
// the last elements of their packages. What has been built before is taken as it is, without asking the module proxy,
// so that later runs measure the same program.
func (g goProgram) install(ctx context.Context, dir string) (version, bin string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	if version, bin := g.built(dir); version != "" {
		return version, bin, nil
	}
	versions := g.versions
	if len(versions) == 0 {
		// Without the list the fallback remains.
		versions, err = g.newest(ctx)
	}
	errs := []error{err}
	for _, version := range append(versions, g.fallback...) {
		bin := filepath.Join(dir, g.dirOf(version))
		err := g.build(ctx, version, bin)
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

func (g goProgram) dirOf(version string) string { return path.Base(g.module) + "-" + version }

// built finds the newest version whose binaries are all there; one that is asked for by name has to be that.
func (g goProgram) built(dir string) (version, bin string) {
	found, _ := filepath.Glob(filepath.Join(dir, g.dirOf("v*"))) // the pattern has the right form
	slices.SortFunc(found, func(a, b string) int { return -compareVersions(filepath.Base(a), filepath.Base(b)) })
	for _, bin := range found {
		version := strings.TrimPrefix(filepath.Base(bin), g.dirOf(""))
		if len(g.versions) > 0 && !slices.Contains(g.versions, version) {
			continue
		}
		whole := !slices.ContainsFunc(g.paths(), func(p string) bool {
			_, err := os.Stat(filepath.Join(bin, path.Base(p)))
			return err != nil
		})
		if whole {
			return version, bin
		}
	}
	return "", ""
}

// newestTried is how many releases are tried at most.
const newestTried = 4

// newest lists the newest releases of the module, the newest first.
func (g goProgram) newest(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", `{{join .Versions " "}}`, "-versions",
		g.module+"@latest").Output()
	if err != nil {
		return nil, fmt.Errorf("versions of %s: %w", g.module, err)
	}
	versions := slices.DeleteFunc(strings.Fields(string(out)), func(v string) bool { return strings.Contains(v, "-") })
	slices.SortFunc(versions, func(a, b string) int { return -compareVersions(a, b) })
	return versions[:min(len(versions), newestTried)], nil
}

// compareVersions compares the numbers in two versions one by one.
func compareVersions(a, b string) int {
	numbers := func(v string) (n []int) {
		for _, f := range strings.FieldsFunc(v, func(r rune) bool { return r < '0' || r > '9' }) {
			i, _ := strconv.Atoi(f) // digits only; too many of them make it the largest number
			n = append(n, i)
		}
		return n
	}
	return slices.Compare(numbers(a), numbers(b))
}

func (g goProgram) paths() []string {
	if len(g.packages) == 0 {
		return []string{g.module}
	}
	var paths []string
	for _, p := range g.packages {
		paths = append(paths, path.Join(g.module, p))
	}
	return paths
}

func (g goProgram) build(ctx context.Context, version, bin string) error {
	args := []string{"install"}
	for _, p := range g.paths() {
		args = append(args, p+"@"+version)
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

// sayVersion is what a given binary says about itself on its first line.
func sayVersion(ctx context.Context, binary, flag string) string {
	out, err := exec.CommandContext(ctx, binary, flag).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return "of unknown version"
	}
	return line
}
