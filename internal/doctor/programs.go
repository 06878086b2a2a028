package doctor

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// asked bounds how long a program may take to say its version.
const asked = 2 * time.Second

// Programs looks for other haldirs on a PATH than the one at self, which is of a version.
func Programs(ctx context.Context, path, self, version string) (found []Finding) {
	name := "haldir"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	var others []string
	var seen []os.FileInfo
	if own, err := os.Stat(self); err == nil {
		seen = append(seen, own)
	}
	for _, dir := range filepath.SplitList(path) {
		file, err := filepath.Abs(filepath.Join(dir, name)) // by a path of this directory nothing can be started
		if err != nil {
			continue
		}
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode()&0o111 == 0 || seenBefore(seen, info) {
			continue
		}
		seen, others = append(seen, info), append(others, file)
	}
	versions := make([]string, len(others))
	var wg sync.WaitGroup
	for i, o := range others {
		wg.Go(func() { versions[i] = versionOf(ctx, o, path) })
	}
	wg.Wait()
	for i, o := range others {
		if versions[i] == version && launches(o, self) {
			continue
		}
		severity := Warning
		if versions[i] == version {
			severity = Note
		}
		found = append(found, New(ProgramOthers, severity, "versions", Fix{Text: "take one of them off PATH, or remove it"},
			"%s is another haldir (%s) than this one, %s (%s)", o, versions[i], self, version))
	}
	return found
}

// launches reports whether a program is the script of the npm package haldir, and self what that
// starts: the haldir of a package beside it. npm links the script into a directory of PATH.
func launches(program, self string) bool {
	script, err := filepath.EvalSymlinks(program)
	return err == nil && strings.Contains(filepath.ToSlash(script), "/node_modules/haldir/") &&
		strings.Contains(filepath.ToSlash(self), "/node_modules/@haldir-mcp/")
}

func seenBefore(seen []os.FileInfo, info os.FileInfo) bool {
	for _, s := range seen {
		if os.SameFile(s, info) {
			return true
		}
	}
	return false
}

// versionOf asks a program for its version. It may be a script, whose interpreter is looked for on path.
func versionOf(ctx context.Context, program, path string) string {
	ctx, cancel := context.WithTimeout(ctx, asked)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "version", "--json")
	cmd.Env = append(cmd.Environ(), "PATH="+path)
	cmd.WaitDelay = asked / 10
	out, err := cmd.Output()
	var said struct {
		Version string `json:"version"`
	}
	if err != nil || json.Unmarshal(out, &said) != nil || said.Version == "" {
		return "which does not say its version"
	}
	return strings.ToValidUTF8(said.Version, "")
}
