package wgpeer

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// module is the one that go.mod names as a tool, so that go.mod says which version is built.
const module = "golang.zx2c4.com/wireguard"

// Build builds wireguard-go into a directory and returns the path of the program and its version. It has to be called
// in this repository, whose go.mod pins the version; what go has in its build cache takes a moment only.
func Build(ctx context.Context, dir string) (program, version string, err error) {
	if program, err = filepath.Abs(filepath.Join(dir, "wireguard-go")); err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-o", program, module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("building wireguard-go: %w: %s (it needs Warren's go.mod: run it in the repository)", err,
			out)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "", "", fmt.Errorf("version of wireguard-go: %w", err)
	}
	return program, info.Main.Version, nil
}
