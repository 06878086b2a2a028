package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// Settings are the scalar settings after layering.
type Settings struct {
	StateDir      string
	DeniedTools   string // hide or show
	ToolNameLimit int
	ListWait      time.Duration
	MaxMessage    int
	Arguments     audit.Detail
	Retain        time.Duration // for how long the audit keeps records; 0 is for ever
	LogLevel      string
	LogFormat     string
	LogFile       string
	Keyring       string // auto or file
	Reload        string // confirm or auto
	SessionID     string // join this session instead of one of the config's
}

// Setting is one scalar setting: where it comes from and what it means.
type Setting struct {
	Key     string // its place in haldir.yaml, "" if it cannot stand there
	Env     string
	Flag    string // "" if there is none
	Default string
	Doc     string
	valid   func(string) error
}

// AllSettings is the closed list of settings, in the order of the reference.
func AllSettings() []Setting {
	return []Setting{
		{Env: "HALDIR_CONFIG", Flag: "config", Doc: "the config file"},
		{Env: "HALDIR_STATE_DIR", Flag: "state-dir", Doc: "the directory of the ledger"},
		{Env: "HALDIR_SESSION_ID", Flag: "session", Doc: "join this session", valid: aSession},
		{Key: "denied_tools", Env: "HALDIR_DENIED_TOOLS", Default: "hide", Doc: "list tools that policy could never allow: hide or show", valid: oneOf("hide", "show")},
		{Key: "tool_name_limit", Env: "HALDIR_TOOL_NAME_LIMIT", Default: "89", Doc: "the longest tool name", valid: number(16, 128)},
		{Key: "list_wait", Env: "HALDIR_LIST_WAIT", Default: "4s", Doc: "how long tools/list waits for unknown upstreams", valid: aDuration},
		{Key: "max_message_bytes", Env: "HALDIR_MAX_MESSAGE_BYTES", Default: fmt.Sprint(wire.DefaultMaxMessage), Doc: "the largest message, in bytes", valid: number(1024, 1<<30)},
		{Key: "reload", Env: "HALDIR_RELOAD", Default: "confirm", Doc: "changes of the config that loosen a rule or start a command: confirm (a person does) or auto", valid: oneOf("confirm", "auto")},
		{Key: "keyring", Env: "HALDIR_KEYRING", Default: "auto", Doc: "where the key of stored secrets is made: auto (the system's keyring, if there is one) or file", valid: oneOf("auto", "file")},
		{Key: "audit.arguments", Env: "HALDIR_AUDIT_ARGUMENTS", Default: "redacted", Doc: "what the audit keeps of arguments: full, redacted or digest", valid: oneOf("full", "redacted", "digest")},
		{Key: "audit.retain", Env: "HALDIR_AUDIT_RETAIN", Doc: "for how long the audit keeps records: 90d, at least 1d; without it for ever", valid: aRetention},
		{Key: "log.level", Env: "HALDIR_LOG_LEVEL", Flag: "log-level", Default: "auto", Doc: "auto (info in serve, else warn), debug, info, warn or error", valid: oneOf("auto", "debug", "info", "warn", "error")},
		{Key: "log.format", Env: "HALDIR_LOG_FORMAT", Flag: "log-format", Default: "auto", Doc: "auto, console or json", valid: oneOf("auto", "console", "json")},
		{Key: "log.file", Env: "HALDIR_LOG_FILE", Doc: "a file to append the log to"},
	}
}

func (s Setting) id() string {
	if s.Key != "" {
		return s.Key
	}
	return s.Flag
}

func oneOf(words ...string) func(string) error {
	return func(v string) error {
		if slices.Contains(words, v) {
			return nil
		}
		return fmt.Errorf("%q is none of %s%s", v, strings.Join(words, ", "), near(v, words))
	}
}

func number(low, high int) func(string) error {
	return func(v string) error {
		var n int
		if _, err := fmt.Sscanf(v, "%d", &n); err != nil || fmt.Sprint(n) != v || n < low || n > high {
			return fmt.Errorf("%q is no whole number from %d to %d", v, low, high)
		}
		return nil
	}
}

func aSession(v string) error {
	if err := CheckID(v); v != "" && err != nil {
		return fmt.Errorf("the id %q %w", v, err)
	}
	return nil
}

// leastRetain is the shortest time for which records are kept: nothing that is still under
// way is older.
const leastRetain = 24 * time.Hour

func aRetention(v string) error {
	var d duration
	if v == "" {
		return nil
	}
	if err := d.setText(v); err != nil {
		return err
	}
	if time.Duration(d) < leastRetain {
		return fmt.Errorf("%q is too short; records are kept for 1d at least, and without the key for ever", v)
	}
	return nil
}

func aDuration(v string) error { var d duration; return d.setText(v) }

// settings returns the scalar settings that the document sets, checked.
func (c *checker) settings() map[string]any {
	out := map[string]any{}
	values := map[string]string{
		"denied_tools": c.doc.DeniedTools, "tool_name_limit": fmt.Sprint(c.doc.ToolNameLimit),
		"keyring": c.doc.Keyring, "reload": c.doc.Reload, "list_wait": time.Duration(c.doc.ListWait).String(), "max_message_bytes": fmt.Sprint(c.doc.MaxMessage),
	}
	if a := c.doc.Audit; a != nil {
		values["audit.arguments"], values["audit.retain"] = a.Arguments, time.Duration(a.Retain).String()
	}
	if l := c.doc.Log; l != nil {
		values["log.level"], values["log.format"], values["log.file"] = l.Level, l.Format, l.File
	}
	for _, s := range AllSettings() {
		if s.Key == "" || !c.has(s.Key) {
			continue
		}
		v := values[s.Key]
		if s.valid != nil {
			if err := s.valid(v); err != nil {
				c.fail(s.Key, "%v", err)
			}
		}
		out[s.Key] = v
	}
	return out
}

// Layered gives access to the settings of one command line.
type Layered struct{ v *viper.Viper }

// Layer prepares the layers: flags over HALDIR_* variables over the file over
// defaults. Flags that the set lacks are left out.
func Layer(flags *pflag.FlagSet) (*Layered, error) {
	v := viper.New()
	for _, s := range AllSettings() {
		v.SetDefault(s.id(), s.Default)
		if err := v.BindEnv(s.id(), s.Env); err != nil {
			return nil, err
		}
		if f := flags.Lookup(s.Flag); f != nil {
			if err := v.BindPFlag(s.id(), f); err != nil {
				return nil, err
			}
		}
	}
	return &Layered{v}, nil
}

// ConfigPath returns the config file to use. named tells whether the user named
// it, so that its absence is an error; the default one may be absent. The
// current directory is never searched: a cloned repository must not be able to
// start commands.
func (l *Layered) ConfigPath() (path string, named bool, err error) {
	if p := l.v.GetString("config"); p != "" {
		return p, true, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", false, fmt.Errorf("find the config directory: %w; use --config", err)
	}
	return filepath.Join(dir, "haldir", "haldir.yaml"), false, nil
}

// Find loads the config file, or returns [Empty] when none was named and the
// default one is absent.
func (l *Layered) Find() (*Config, error) {
	path, named, err := l.ConfigPath()
	if err != nil {
		return nil, err
	}
	c, err := Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		if named {
			return nil, fmt.Errorf("the config file %s does not exist", path)
		}
		return Empty(), nil
	}
	return c, err
}

// Settings returns the settings with c's file as a layer; c may be nil.
func (l *Layered) Settings(c *Config) (Settings, error) {
	if c != nil {
		nested := map[string]any{}
		for k, v := range c.file {
			if group, name, ok := strings.Cut(k, "."); ok {
				m, _ := nested[group].(map[string]any)
				if m == nil {
					m = map[string]any{}
					nested[group] = m
				}
				m[name] = v
				continue
			}
			nested[k] = v
		}
		if err := l.v.MergeConfigMap(nested); err != nil {
			return Settings{}, err
		}
	}
	for _, s := range AllSettings() {
		if v := l.v.GetString(s.id()); s.valid != nil {
			if err := s.valid(v); err != nil {
				return Settings{}, fmt.Errorf("%s: %w", s.source(l.v), err)
			}
		}
	}
	out := Settings{
		StateDir: l.v.GetString("state-dir"), SessionID: l.v.GetString("session"), Keyring: l.v.GetString("keyring"), Reload: l.v.GetString("reload"), DeniedTools: l.v.GetString("denied_tools"),
		ToolNameLimit: l.v.GetInt("tool_name_limit"), MaxMessage: l.v.GetInt("max_message_bytes"),
		Arguments: audit.Detail(l.v.GetString("audit.arguments")), LogLevel: l.v.GetString("log.level"),
		LogFormat: l.v.GetString("log.format"), LogFile: l.v.GetString("log.file"),
	}
	var wait duration
	if err := wait.setText(l.v.GetString("list_wait")); err != nil {
		return Settings{}, err
	}
	out.ListWait = time.Duration(wait)
	if text := l.v.GetString("audit.retain"); text != "" {
		var keep duration
		if err := keep.setText(text); err != nil {
			return Settings{}, err
		}
		out.Retain = time.Duration(keep)
	}
	if out.StateDir == "" {
		dir, err := defaultStateDir()
		if err != nil {
			return Settings{}, err
		}
		out.StateDir = dir
	}
	return out, nil
}

// source names the layer that gave a setting its value, for a message.
func (s Setting) source(v *viper.Viper) string {
	if os.Getenv(s.Env) != "" && os.Getenv(s.Env) == v.GetString(s.id()) {
		return s.Env
	}
	if s.Flag != "" {
		return "--" + s.Flag
	}
	return s.Key
}

// DefaultPaths are the config file and the state directory of a haldir that is told nothing and
// has none of the XDG variables, which a shell may set and a desktop need not.
func DefaultPaths() (file, stateDir string, err error) {
	if stateDir, err = platformStateDir(); err != nil {
		return "", "", err
	}
	dir, err := os.UserConfigDir()
	if runtime.GOOS != "darwin" && runtime.GOOS != "windows" {
		if dir, err = os.UserHomeDir(); err == nil {
			dir = filepath.Join(dir, ".config")
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("find the config directory: %w; use --config", err)
	}
	return filepath.Join(dir, "haldir", "haldir.yaml"), stateDir, nil
}

// defaultStateDir is where a user's state is.
func defaultStateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" && filepath.IsAbs(dir) {
		return filepath.Join(dir, "haldir"), nil
	}
	return platformStateDir()
}

// platformStateDir is the platform's place for a user's state.
func platformStateDir() (string, error) {
	if dir := os.Getenv("LOCALAPPDATA"); runtime.GOOS == "windows" && dir != "" {
		return filepath.Join(dir, "haldir"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the state directory: %w; use --state-dir", err)
	}
	if runtime.GOOS == "darwin" {
		return filepath.Join(home, "Library", "Application Support", "haldir"), nil
	}
	return filepath.Join(home, ".local", "state", "haldir"), nil
}

// BehindVar is no setting: in it a haldir tells those that it starts which configs it, and
// those that it was started by, serve, as a list of paths.
const BehindVar = "HALDIR_BEHIND"

// UnknownVariables lists the HALDIR_* variables in environ that mean nothing,
// with a suggestion each.
func UnknownVariables(environ []string) []string {
	known := []string{BehindVar}
	for _, s := range AllSettings() {
		known = append(known, s.Env)
	}
	var out []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "HALDIR_") && !slices.Contains(known, name) {
			out = append(out, name+Suggest(name, known))
		}
	}
	return out
}
