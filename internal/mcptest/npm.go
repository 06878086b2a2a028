package mcptest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// The packages of npm that tests run.
const (
	Everything = "@modelcontextprotocol/server-everything@2026.8.31"
	Filesystem = "@modelcontextprotocol/server-filesystem@2026.8.31"
	Inspector  = "@modelcontextprotocol/inspector@0.15.0" // the last that runs on node 20
	Axe        = "axe-core@4.14.1"
)

// noSkip turns a missing npm into a failure. .ci/run sets it.
const noSkip = "HALDIR_TEST_DISALLOW_SKIP"

// Unavailable skips a test that needs software this machine cannot get, or
// fails it where skipping is not allowed.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(noSkip) == "1" {
		t.Fatalf("%s forbids to skip: %s", noSkip, fmt.Sprintf(format, args...))
	}
	t.Skipf("skipped: %s", fmt.Sprintf(format, args...))
}

// NPM returns the command that runs a program of an npm package, which it
// installs below the user's cache directory if it is not there yet. The spec is
// name@version. A package without a program of that name fails the test; without
// npm, or without a way to its registry, the test is [Unavailable].
func NPM(t testing.TB, spec, program string) []string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		Unavailable(t, "there is no node: %v", err)
	}
	home := NPMPackage(t, spec)
	raw, err := os.ReadFile(filepath.Join(home, "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Name string          `json:"name"`
		Bin  json.RawMessage `json:"bin"`
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	// A package with one program may give its path alone: it is called as the package is.
	var only string
	programs := map[string]string{}
	if json.Unmarshal(manifest.Bin, &only) == nil {
		programs[path.Base(manifest.Name)] = only
	} else if err := json.Unmarshal(manifest.Bin, &programs); err != nil {
		t.Fatalf("%s: its programs: %v", spec, err)
	}
	script, ok := programs[program]
	if !ok {
		t.Fatalf("%s has no program %s, only %v", spec, program, programs)
	}
	return []string{node, filepath.Join(home, filepath.FromSlash(script))}
}

// NPMPackage returns the directory of an npm package, installed as by [NPM].
func NPMPackage(t testing.TB, spec string) string {
	t.Helper()
	dir, err := install(spec)
	if err != nil {
		Unavailable(t, "npm cannot install %s: %v", spec, err)
	}
	return filepath.Join(dir, "node_modules", filepath.FromSlash(spec[:strings.LastIndex(spec, "@")]))
}

var installed sync.Map // spec → func() (string, error), each of which works once

func install(spec string) (string, error) {
	once, _ := installed.LoadOrStore(spec, sync.OnceValues(func() (string, error) { return installOnce(spec) }))
	return once.(func() (string, error))()
}

// installOnce installs a package beside its place and moves it there when it is
// whole, so that what stands there is never half a package. A lock keeps test
// processes that run at the same time from downloading it twice.
func installOnce(spec string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "haldir-test-npm")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	place := filepath.Join(root, strings.ReplaceAll(spec, "/", "+"))
	if _, err := os.Stat(place); err == nil {
		return place, nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	lock := flock.New(place + ".lock")
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for another test that installs it: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if _, err := os.Stat(place); err == nil {
		return place, nil
	}
	work, err := os.MkdirTemp(root, ".installing-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	cmd := exec.CommandContext(ctx, npm, "install", "--prefix", work, "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", spec)
	cmd.Dir = work
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, tail(string(out), 1000))
	}
	if err := os.Rename(work, place); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return place, nil
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
