package clients

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"
)

// Lists of the servers of a project's .mcp.json, in the settings of Claude Code.
const (
	enabled  = "enabledMcpjsonServers"
	disabled = "disabledMcpjsonServers"
)

// rejected lists the servers of a project's .mcp.json that the person does not want.
func (h Host) rejected() (out []string) {
	for _, path := range slices.Concat(h.managed(), []string{h.ClaudeSettings()}, projectSettings(h.Dirs())) {
		if o := readRoot(path); o != nil {
			out = append(out, texts(o, disabled)...)
		}
	}
	return append(out, h.chosen(disabled)...)
}

// chosen lists the servers that Claude Code has noted for this project under a key of the
// person's own state, which no project can bring along.
func (h Host) chosen(key string) (out []string) {
	h.eachProject(func(dir string, o *hujson.Object) {
		if h.here(dir) {
			out = append(out, texts(o, key)...)
		}
	})
	return out
}

// eachProject goes through what Claude Code has noted of projects in the person's own state.
func (h Host) eachProject(do func(dir string, o *hujson.Object)) {
	o := readRoot(h.ClaudeConfig())
	if o == nil {
		return
	}
	v := member(o, "projects")
	if projects := object(v); projects != nil {
		for i := range projects.Members {
			if o := object(&projects.Members[i].Value); o != nil {
				do(nameOf(&projects.Members[i]), o)
			}
		}
	}
}

// approval is what a project's own settings say is approved of its servers.
type approval struct {
	path  string
	names []string
	own   bool // the person's, and not brought along by the project
}

// approvals are those in the settings that Claude Code writes for the person alone. It has put
// them there since it has taken them out of its own state.
func (h Host) approvals() (out []approval) {
	for _, dir := range h.Dirs() {
		path := filepath.Join(dir, ".claude", "settings.local.json")
		o := readRoot(path)
		if o == nil {
			continue
		}
		if names := texts(o, enabled); len(names) > 0 {
			out = append(out, approval{path, names, h.trusted(dir) && untracked(path)})
		}
	}
	return out
}

// trusted reports whether the person has told Claude Code that a directory is, or one above it.
func (h Host) trusted(dir string) (yes bool) {
	h.eachProject(func(project string, o *hujson.Object) {
		rel, err := filepath.Rel(filepath.FromSlash(project), dir)
		yes = yes || isTrue(member(o, "hasTrustDialogAccepted")) && (h.here(project) || err == nil && filepath.IsLocal(rel))
	})
	return yes
}

// untracked reports whether git knows that a file is none of its repository's, so that no clone
// has brought it along. Whatever is in doubt may have come so: links, and what is in no
// repository.
func untracked(path string) bool {
	dir, name := filepath.Dir(path), filepath.Base(path)
	in, errIn := os.Lstat(dir)
	file, err := os.Lstat(path)
	if errIn != nil || err != nil || !in.IsDir() || !file.Mode().IsRegular() {
		return false
	}
	project, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil || holds(dir, ".git") || holds(dir, "HEAD") || !worktree(project) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// Nothing that the repository's own config names is to run. A file's name may be spelt in
	// more ways than one.
	cmd := exec.CommandContext(ctx, "git", "-C", project, "-c", "safe.bareRepository=explicit", "-c", "core.fsmonitor=false",
		"ls-files", "--cached", "--error-unmatch", "--", ":(icase)"+filepath.Base(dir)+"/"+name)
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(e string) bool { return strings.HasPrefix(e, "GIT_") })
	cmd.Env = append(cmd.Env, "GIT_NO_LAZY_FETCH=1")
	exit, ok := errors.AsType[*exec.ExitError](cmd.Run())
	return ok && exit.ExitCode() == 1 // 0: it has it; 128: there is no repository
}

// worktree reports whether the repository that git finds for a directory is one with a .git, which
// no clone brings along. A directory with a HEAD may be a repository by itself, with a config that
// came with the clone; git before 2.38 cannot be told to leave those alone.
func worktree(dir string) bool {
	for ; !holds(dir, ".git"); dir = filepath.Dir(dir) {
		if holds(dir, "HEAD") || filepath.Dir(dir) == dir {
			return false
		}
	}
	return true
}

// holds reports whether something of that name is in a directory, or may be.
func holds(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// Asks reports whether Claude Code asks the person before it loads a server of this name from the
// file of a list: it approves by name.
func (h Host) Asks(l *List, name string) bool {
	if l.File.Client != ClaudeCode || l.Scope != Project || slices.Contains(h.chosen(enabled), name) {
		return false
	}
	paths := append(h.managed(), h.ClaudeSettings())
	if h.trusted(l.Project()) {
		paths = append(paths, projectSettings([]string{l.Project()})...)
	}
	return !slices.ContainsFunc(paths, func(path string) bool {
		o := readRoot(path)
		return o != nil && (isTrue(member(o, "enableAllProjectMcpServers")) || slices.Contains(texts(o, enabled), name))
	})
}
