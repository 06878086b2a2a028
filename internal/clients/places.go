package clients

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/haldir-mcp/haldir/internal/files"
)

// Client is a program that starts MCP servers for its agent.
type Client string

// The clients.
const (
	ClaudeCode    Client = "claude-code"
	ClaudeDesktop Client = "claude-desktop"
	Cursor        Client = "cursor"
	VSCode        Client = "vscode"
	Windsurf      Client = "windsurf"
)

// All lists the clients.
func All() []Client { return []Client{ClaudeCode, ClaudeDesktop, Cursor, VSCode, Windsurf} }

// String is what people call it.
func (c Client) String() string {
	switch c {
	case ClaudeCode:
		return "Claude Code"
	case ClaudeDesktop:
		return "Claude Desktop"
	case Cursor:
		return "Cursor"
	case VSCode:
		return "VS Code"
	case Windsurf:
		return "Windsurf"
	}
	return string(c)
}

// Scope is whom a server is for.
type Scope string

// The scopes.
const (
	User    Scope = "user"    // this person, everywhere
	Local   Scope = "local"   // this person, in one project
	Project Scope = "project" // everybody who has the project
)

// Host is the machine and the person whose clients are looked at.
type Host struct {
	OS   string // as in runtime.GOOS
	Home string
	Dir  string // where the person is
	Own  string // the program that runs, whatever its name is; "" if it is not known
	Env  func(string) string

	Managed string // where an administrator's settings of Claude Code are; "" for nowhere

	look *look // nil: each question is asked of the files as they are by then
}

// look is what has been read in one look at the clients.
type look struct {
	files map[Place]*File
	roots map[string]reply // by path
}

// reply is what a file of Claude Code says.
type reply struct {
	root *hujson.Object
	err  error
}

// Once is the host for one look at the clients, in which each file is read and parsed once: Claude
// Code's own has megabytes of history with many people, and every list asks what stands there. What
// is written later such a look does not see. It is for one goroutine. One that is a look stays that.
func (h Host) Once() Host {
	if h.look == nil {
		h.look = &look{map[Place]*File{}, map[string]reply{}}
	}
	return h
}

// Place is where a client may have a file of servers.
type Place struct {
	Client Client
	Scope  Scope // User or Project
	Path   string
}

// Places lists where files of servers may be, whether or not there are any.
func (h Host) Places() []Place {
	out := []Place{{ClaudeCode, User, h.ClaudeConfig()}}
	add := func(c Client, s Scope, path ...string) { out = append(out, Place{c, s, filepath.Join(path...)}) }
	for _, dir := range h.Dirs() {
		add(ClaudeCode, Project, dir, ".mcp.json")
	}
	add(ClaudeDesktop, User, h.appData(), "Claude", "claude_desktop_config.json")
	add(Cursor, User, h.Home, ".cursor", "mcp.json")
	for _, dir := range h.Dirs() {
		add(Cursor, Project, dir, ".cursor", "mcp.json")
	}
	for _, edition := range []string{"Code", "Code - Insiders", "VSCodium"} {
		user := filepath.Join(h.appData(), edition, "User")
		add(VSCode, User, user, "mcp.json")
		profiles, _ := filepath.Glob(filepath.Join(user, "profiles", "*", "mcp.json")) // most people have none
		for _, p := range profiles {
			add(VSCode, User, p)
		}
	}
	for _, dir := range h.Dirs() {
		add(VSCode, Project, dir, ".vscode", "mcp.json")
	}
	for _, edition := range []string{"windsurf", "windsurf-next"} {
		add(Windsurf, User, h.Home, ".codeium", edition, "mcp_config.json")
	}
	return out
}

// appData is where programs with a window keep what belongs to a person.
func (h Host) appData() string {
	switch h.OS {
	case "darwin":
		return filepath.Join(h.Home, "Library", "Application Support")
	case "windows":
		if dir := h.Env("APPDATA"); dir != "" {
			return dir
		}
		return filepath.Join(h.Home, "AppData", "Roaming")
	}
	if dir := h.Env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(h.Home, ".config")
}

// ClaudeDir is Claude Code's directory.
func (h Host) ClaudeDir() string {
	if dir := h.Env("CLAUDE_CONFIG_DIR"); dir != "" {
		return dir
	}
	return filepath.Join(h.Home, ".claude")
}

// ClaudeConfig is the file in which Claude Code keeps a person's servers.
func (h Host) ClaudeConfig() string {
	old := filepath.Join(h.ClaudeDir(), ".config.json")
	if info, err := os.Stat(old); err == nil && info.Mode().IsRegular() {
		return old
	}
	if dir := h.Env("CLAUDE_CONFIG_DIR"); dir != "" {
		return filepath.Join(dir, ".claude.json")
	}
	return filepath.Join(h.Home, ".claude.json")
}

// ClaudeSettings is the file of a person's settings of Claude Code.
func (h Host) ClaudeSettings() string { return filepath.Join(h.ClaudeDir(), "settings.json") }

// Dirs are the directory where the person is and those above it, as far as to the root of
// its repository. Outside of one it is alone.
func (h Host) Dirs() []string {
	if h.Dir == "" {
		return nil
	}
	var dirs []string
	for dir := filepath.Clean(h.Dir); ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return dirs
		}
		if filepath.Dir(dir) == dir {
			return dirs[:1]
		}
	}
}

// path lists the directories of PATH that no project has a say in. npx and npm run put
// node_modules/.bin of all directories above before the others, and a clone may bring one along.
func (h Host) path() (dirs []string) {
	var project []fs.FileInfo
	for _, dir := range h.Dirs() {
		if info, err := os.Stat(dir); err == nil && (h.Home == "" || !within(h.Home, info)) { // a person's own programs are there
			project = append(project, info)
		}
	}
	for _, dir := range filepath.SplitList(h.Env("PATH")) {
		place, err := filepath.EvalSymlinks(dir)
		if err == nil && filepath.IsAbs(dir) && !installed(dir) && !installed(place) && !within(dir, project...) && !within(place, project...) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// installed reports whether a directory is where npm puts programs for a project.
func installed(dir string) bool {
	return strings.EqualFold(filepath.Base(dir), ".bin") && strings.EqualFold(filepath.Base(filepath.Dir(dir)), "node_modules")
}

// within reports whether a directory is one of some or below one, however it is spelt.
func within(dir string, some ...fs.FileInfo) bool {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && slices.ContainsFunc(some, func(s fs.FileInfo) bool { return os.SameFile(s, info) }) {
			return true
		}
		if filepath.Dir(dir) == dir {
			return false
		}
	}
}

// Path is PATH without what a project has a say in, for a program that is started here.
func (h Host) Path() string { return strings.Join(h.path(), string(filepath.ListSeparator)) }

// Program is where a program is on that, "" if it is not.
func (h Host) Program(name string) string {
	for _, dir := range h.path() {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found
		}
	}
	return ""
}

// here reports whether a directory is the project that the person is in.
func (h Host) here(dir string) bool { return h.among(h.Dirs(), dir) }

// among reports whether a directory is one of some, however it is spelt.
func (h Host) among(dirs []string, dir string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return same(d, dir, h.OS) || files.Same(d, dir) })
}

func same(a, b, system string) bool {
	a, b = filepath.Clean(filepath.FromSlash(a)), filepath.Clean(filepath.FromSlash(b))
	return a == b || system == "windows" && strings.EqualFold(a, b)
}
