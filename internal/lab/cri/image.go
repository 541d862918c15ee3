package cri

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Names of the images. The registry's name is reserved (RFC 6761) and never asked.
const (
	pauseImage  = "warren.test/pause:1"
	serverImage = "warren.test/server:1"
)

// programs are the images and the package that each one's program is built from.
func programs() map[string]string {
	const here = "github.com/warren-net/warren/internal/lab/cri/"
	return map[string]string{pauseImage: here + "pause", serverImage: here + "server"}
}

// buildProgram builds a program that needs nothing else in its image, and returns its path.
func buildProgram(ctx context.Context, pkg, dir string) (string, error) {
	program := filepath.Join(dir, filepath.Base(pkg))
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w",
		"-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return program, nil
}

// An Image is what a registry would have: a name, and programs.
type Image struct {
	Name       string            // with a tag
	Files      map[string]string // path in the image → file on this machine, which is a program
	Entrypoint []string
}

// Write writes an archive in the form of `docker save` with the image, which is of one layer.
func (i Image) Write(archive string) error {
	var files []file
	for _, path := range slices.Sorted(maps.Keys(i.Files)) {
		content, err := os.ReadFile(i.Files[path])
		if err != nil {
			return fmt.Errorf("image %s: %w", i.Name, err)
		}
		files = append(files, file{strings.TrimPrefix(path, "/"), content, 0o755})
	}
	layer, err := tarOf(files...)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           runtime.GOOS,
		"config":       map[string]any{"Entrypoint": i.Entrypoint},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return err
	}
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{
		{"Config": configName, "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}},
	})
	if err != nil {
		return err
	}
	image, err := tarOf(file{configName, config, 0o644}, file{"layer.tar", layer, 0o644},
		file{"manifest.json", manifest, 0o644})
	if err != nil {
		return err
	}
	return os.WriteFile(archive, image, 0o644)
}

// Images are archives of what the pods run.
type Images struct {
	archives []string
	init     string // the program pause, which does for a node what it does for a sandbox
}

// BuildImages builds the programs and assembles an image of each.
func BuildImages(ctx context.Context, dir string) (*Images, error) {
	images := new(Images)
	for name, pkg := range programs() {
		program, err := buildProgram(ctx, pkg, dir)
		if err != nil {
			return nil, err
		}
		path := "/" + filepath.Base(program)
		image := Image{Name: name, Files: map[string]string{path: program}, Entrypoint: []string{path}}
		if err := images.Add(program+".tar", image); err != nil {
			return nil, err
		}
		if name == pauseImage {
			images.init = program
		}
	}
	return images, nil
}

// Add assembles another image, as an archive with this path.
func (i *Images) Add(archive string, image Image) error {
	if err := image.Write(archive); err != nil {
		return fmt.Errorf("image %s: %w", image.Name, err)
	}
	i.archives = append(i.archives, archive)
	return nil
}

type file struct {
	name    string
	content []byte
	mode    int64
}

func tarOf(files ...file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: f.mode}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("archive with %s: %w", f.name, err)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fmt.Errorf("archive with %s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	return buf.Bytes(), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
