package clients

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tailscale/hujson"

	"github.com/haldir-mcp/haldir/internal/files"
)

// Lists of the servers of a project's .mcp.json, in the settings of Claude Code.
const (
	enabled  = "enabledMcpjsonServers"
	disabled = "disabledMcpjsonServers"
)

// rejected lists the servers of a project's .mcp.json that the person does not want.
func (h Host) rejected() (out []string) {
	for _, path := range slices.Concat(h.managed(), []string{h.ClaudeSettings()}, projectSettings(h.Dirs())) {
		if o := h.readRoot(path); o != nil {
			out = append(out, texts(o, disabled)...)
		}
	}
	return append(out, h.chosen(disabled, h.Dirs()...)...)
}

// chosen lists the servers that Claude Code has noted for some directories under a key of the
// person's own state, which no project can bring along.
func (h Host) chosen(key string, dirs ...string) (out []string) {
	h.eachProject(func(dir string, o *hujson.Object) {
		if h.among(dirs, dir) {
			out = append(out, texts(o, key)...)
		}
	})
	return out
}

// eachProject goes through what Claude Code has noted of projects in the person's own state.
func (h Host) eachProject(do func(dir string, o *hujson.Object)) {
	o := h.readRoot(h.ClaudeConfig())
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

// approval is that in the settings of a directory that Claude Code writes for the person alone. It
// has put it there since it has taken it out of its own state. What is approved is what stands beside
// it: another directory of the project may have another server of that name, which came with a package.
func (h Host) approval(dir string) approval {
	path := filepath.Join(dir, ".claude", "settings.local.json")
	o := h.readRoot(path)
	if o == nil {
		return approval{}
	}
	names := texts(o, enabled)
	return approval{path, names, len(names) > 0 && h.trusted(dir) && h.personal(path)}
}

// trusted reports whether the person has told Claude Code that a directory is, or one above it. One
// above the repository has no say where that is inside another: so does an archive that is unpacked
// there.
func (h Host) trusted(dir string) (yes bool) {
	dirs := h.Dirs() // from the directory itself
	dirs = dirs[max(slices.Index(dirs, dir), 0):]
	place, err := filepath.EvalSymlinks(dir)
	alone := err == nil && len(worktrees(place)) < 2
	h.eachProject(func(project string, o *hujson.Object) {
		rel, err := filepath.Rel(filepath.FromSlash(project), dir)
		above := err == nil && filepath.IsLocal(rel) && alone
		yes = yes || isTrue(member(o, "hasTrustDialogAccepted")) && (h.among(dirs, project) || above)
	})
	return yes
}

// personal reports whether the settings of a project for the person alone are theirs. git must say
// that no clone has brought the file, and that the project is its repository's: what a package or an
// archive has brought into it, git does not know at all. Whatever is in doubt may have come so: links,
// what is in no repository, and where git fails.
func (h Host) personal(path string) bool {
	dir := filepath.Dir(path)
	in, errIn := os.Lstat(dir)
	file, err := os.Lstat(path)
	if errIn != nil || err != nil || !in.IsDir() || !file.Mode().IsRegular() {
		return false
	}
	project, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil || holds(dir, ".git") || holds(dir, "HEAD") {
		return false
	}
	roots := worktrees(project)
	for i, root := range roots {
		x, ok := h.index(root)
		if !ok || x.has(filepath.Join(project, filepath.Base(dir), filepath.Base(path)), roots[:i]) {
			return false
		}
		if i == 0 && project != root && !x.names(filepath.Join(project, ".mcp.json")) {
			return false
		}
	}
	return len(roots) > 0
}

// worktrees are the directories with a .git that a directory is in, the nearest first: no clone brings
// a .git along. A directory with a HEAD before those may be a repository by itself, with a config that
// came with the clone; git before 2.38 cannot be told to leave it alone.
func worktrees(dir string) (roots []string) {
	for ; ; dir = filepath.Dir(dir) {
		switch {
		case holds(dir, ".git"):
			roots = append(roots, dir)
		case len(roots) == 0 && holds(dir, "HEAD"):
			return nil
		}
		if filepath.Dir(dir) == dir {
			return roots
		}
	}
}

// index is what git has of a work tree.
type index struct {
	root  string
	paths []string // from the root, with slashes
}

// index asks git for the index of a work tree. ok is false if it has not given it, for whatever
// reason: the repository may also be bare, or have its files in another place.
func (h Host) index(root string) (x index, ok bool) {
	top, err := h.git(root, "rev-parse", "--show-toplevel")
	if err != nil || !files.Same(strings.TrimRight(top, "\r\n"), root) {
		return x, false
	}
	list, err := h.git(root, "ls-files", "-z", "--cached")
	return index{root, strings.Split(list, "\x00")}, err == nil
}

// git is what git says in a directory. Nothing that the repository's own config names is to run, nor
// a program of the project's.
func (h Host) git(dir string, args ...string) (string, error) {
	program := h.Program("git")
	if program == "" {
		return "", exec.ErrNotFound
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, slices.Concat([]string{"-C", dir, "-c", "safe.bareRepository=explicit", "-c", "core.fsmonitor=false"}, args)...)
	cmd.Env = slices.DeleteFunc(cmd.Environ(), func(e string) bool { return strings.HasPrefix(e, "GIT_") })
	cmd.Env = append(cmd.Env, "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", "PATH="+h.Path()) // git before 2.45 knows the second alone
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return string(out), err
}

// names reports whether git has a file under exactly that name.
func (x index) names(file string) bool {
	rel, err := filepath.Rel(x.root, file)
	info, errFile := os.Lstat(file)
	return err == nil && errFile == nil && info.Mode().IsRegular() && slices.Contains(x.paths, filepath.ToSlash(rel))
}

// has reports whether git has a file under any name, or what it is in: a submodule, but for those
// inside whose own index says what they have. Which names are one file the file system alone knows. It
// may fold case beyond ASCII, pass over characters, and have short names. So it is asked what the
// directories of the index are, of which there are few, and what stands in those that lead to the file.
// Two names that differ in case alone count as one everywhere.
func (x index) has(file string, inside []string) bool {
	rel, err := filepath.Rel(x.root, file)
	if err != nil {
		return true
	}
	var way, own []fs.FileInfo // from the file to the root, and as far as the index has it
	for at, below := file, true; at != x.root; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return true
		}
		way = append(way, info)
		if below = below && !slices.Contains(inside, at); below {
			own = append(own, info)
		}
	}
	leads := map[string]bool{".": true} // by directory
	for _, name := range x.paths {
		if name == "" { // behind the last
			continue
		}
		dir := path.Dir(name)
		if _, known := leads[dir]; !known {
			leads[dir] = x.isOneOf(way, dir)
		}
		if strings.EqualFold(name, filepath.ToSlash(rel)) || leads[dir] && x.isOneOf(own, name) {
			return true
		}
	}
	return false
}

// isOneOf reports whether a name leads to one of some files, or may.
func (x index) isOneOf(files []fs.FileInfo, name string) bool {
	info, err := os.Stat(filepath.Join(x.root, filepath.FromSlash(name)))
	return err != nil && !missing(err) || err == nil && slices.ContainsFunc(files, func(f fs.FileInfo) bool { return os.SameFile(f, info) })
}

// holds reports whether something of that name is in a directory, or may be.
func holds(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// Asks reports whether Claude Code asks the person before it loads a server of this name from the
// file of a list: it approves by name.
func (h Host) Asks(l *List, name string) bool {
	if l.File.Client != ClaudeCode || l.Scope != Project || slices.Contains(h.chosen(enabled, h.Dirs()...), name) {
		return false
	}
	paths := append(h.managed(), h.ClaudeSettings())
	if h.trusted(l.Project()) {
		paths = append(paths, projectSettings([]string{l.Project()})...)
	}
	return !slices.ContainsFunc(paths, func(path string) bool {
		o := h.readRoot(path)
		return o != nil && (isTrue(member(o, "enableAllProjectMcpServers")) || slices.Contains(texts(o, enabled), name))
	})
}
