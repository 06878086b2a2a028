package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
)

// alone removes what the machine's own settings are.
func alone(t *testing.T) (home string) {
	t.Helper()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "HALDIR_") || strings.HasPrefix(name, "XDG_") {
			t.Setenv(name, "") // so that it is put back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	home = t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AppData", filepath.Join(home, "AppData", "Roaming"))
	return home
}

// defaultPlace is where this system has configs, from the home directory.
func defaultPlace() string {
	switch runtime.GOOS {
	case "windows":
		return filepath.Join("AppData", "Roaming")
	case "darwin":
		return filepath.Join("Library", "Application Support")
	}
	return ".config"
}

// layers reads a command line that has every flag.
func layers(t *testing.T, args ...string) *config.Layered {
	t.Helper()
	f := pflag.NewFlagSet("haldir", pflag.ContinueOnError)
	for _, s := range config.AllSettings() {
		if s.Flag != "" {
			f.String(s.Flag, "", "")
		}
	}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	l, err := config.Layer(f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A layer of one setting: how a value gets in, and how it comes out. values are
// for the file, the variable and the flag, in this order; the last of them that
// can be given wins.
var settings = map[string]struct {
	values [3]string
	field  func(config.Settings) string
	bad    string // "" if every text is good
}{
	"HALDIR_STATE_DIR":         {[3]string{"", "/from/env", "/from/flag"}, func(s config.Settings) string { return s.StateDir }, ""},
	"HALDIR_SESSION_ID":        {[3]string{"", "ses_env", "ses_flag"}, func(s config.Settings) string { return s.SessionID }, "ses_\u202egnp"},
	"HALDIR_DENIED_TOOLS":      {[3]string{"show", "hide", ""}, func(s config.Settings) string { return s.DeniedTools }, "maybe"},
	"HALDIR_TOOL_NAME_LIMIT":   {[3]string{"50", "60", ""}, func(s config.Settings) string { return fmt.Sprint(s.ToolNameLimit) }, "8"},
	"HALDIR_LIST_WAIT":         {[3]string{"3s", "4s", ""}, func(s config.Settings) string { return s.ListWait.String() }, "soon"},
	"HALDIR_MAX_MESSAGE_BYTES": {[3]string{"2048", "4096", ""}, func(s config.Settings) string { return fmt.Sprint(s.MaxMessage) }, "1_000_000"},
	"HALDIR_KEYRING":           {[3]string{"file", "auto", ""}, func(s config.Settings) string { return s.Keyring }, "disk"},
	"HALDIR_RELOAD":            {[3]string{"auto", "confirm", ""}, func(s config.Settings) string { return s.Reload }, "never"},
	"HALDIR_AUDIT_ARGUMENTS":   {[3]string{"full", "digest", ""}, func(s config.Settings) string { return string(s.Arguments) }, "none"},
	"HALDIR_AUDIT_RETAIN":      {[3]string{"2160h0m0s", "24h0m0s", ""}, func(s config.Settings) string { return s.Retain.String() }, "23h"},
	"HALDIR_LOG_LEVEL":         {[3]string{"warn", "error", "debug"}, func(s config.Settings) string { return s.LogLevel }, "trace"},
	"HALDIR_LOG_FORMAT":        {[3]string{"json", "console", "json"}, func(s config.Settings) string { return s.LogFormat }, "xml"},
	"HALDIR_LOG_FILE":          {[3]string{"/from/file", "/from/env", ""}, func(s config.Settings) string { return s.LogFile }, ""},
}

func inFile(key, value string) string {
	if key == "" || value == "" {
		return "version: 1\n"
	}
	if group, name, nested := strings.Cut(key, "."); nested {
		return fmt.Sprintf("version: 1\n%s: {%s: %s}\n", group, name, value)
	}
	return fmt.Sprintf("version: 1\n%s: %s\n", key, value)
}

func TestEverySettingIsLayered(t *testing.T) {
	tested := 0
	for _, s := range config.AllSettings() {
		if s.Env == "HALDIR_CONFIG" {
			continue // it says which file; see below
		}
		tt, ok := settings[s.Env]
		if !ok {
			t.Errorf("%s has no test", s.Env)
			continue
		}
		tested++
		t.Run(s.Env, func(t *testing.T) {
			alone(t)
			get := func(file string, args ...string) string {
				t.Helper()
				got, err := layers(t, args...).Settings(parse(t, inFile(s.Key, file)))
				if err != nil {
					t.Fatal(err)
				}
				return tt.field(got)
			}
			defaults, err := layers(t).Settings(nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := get(""); got != tt.field(defaults) || s.Default != "" && got != s.Default {
				t.Errorf("the default is %q, want %q", got, s.Default)
			}
			file, env, flag := tt.values[0], tt.values[1], tt.values[2]
			if (file != "") != (s.Key != "") || (flag != "") != (s.Flag != "") {
				t.Fatalf("the test does not cover the layers of %+v", s)
			}
			if file != "" {
				if got := get(file); got != file {
					t.Errorf("with the file at %q it is %q", file, got)
				}
			}
			if flag != "" {
				if got := get(file, "--"+s.Flag, flag); got != flag {
					t.Errorf("with the file at %q and the flag at %q it is %q", file, flag, got)
				}
			}
			t.Setenv(s.Env, env)
			if got := get(file); got != env {
				t.Errorf("with the file at %q and the variable at %q it is %q", file, env, got)
			}
			if flag != "" {
				if got := get(file, "--"+s.Flag, flag); got != flag {
					t.Errorf("with all of them it is %q, want the flag's %q", got, flag)
				}
			}
			t.Setenv(s.Env, "")
			if got := get(file); file != "" && got != file {
				t.Errorf("an empty variable counts: %q", got)
			}
		})
	}
	if tested != len(settings) {
		t.Errorf("%d settings are tested, %d are written down here", tested, len(settings))
	}
	if fields := reflect.TypeFor[config.Settings]().NumField(); fields != tested {
		t.Errorf("Settings has %d fields, %d settings are tested", fields, tested)
	}
}

func TestABadValueNamesItsLayer(t *testing.T) {
	for _, s := range config.AllSettings() {
		tt := settings[s.Env]
		if tt.bad == "" {
			continue
		}
		t.Run(s.Env, func(t *testing.T) {
			alone(t)
			good := parse(t, inFile(s.Key, tt.values[0]))
			starts := func(layer string, err error) {
				t.Helper()
				if err == nil || !strings.HasPrefix(err.Error(), layer+": ") || !strings.Contains(err.Error(), fmt.Sprintf("%q", tt.bad)) {
					t.Errorf("%s at %q: %v", layer, tt.bad, err)
				}
			}
			if _, err := config.Parse([]byte(inFile(s.Key, tt.bad)), "haldir.yaml"); s.Key != "" && (err == nil || !strings.HasPrefix(err.Error(), "haldir.yaml:2:") || !strings.Contains(err.Error(), ": "+s.Key+": ")) {
				t.Errorf("the file at %q: %v", tt.bad, err)
			}
			if s.Flag != "" {
				_, err := layers(t, "--"+s.Flag, tt.bad).Settings(good)
				starts("--"+s.Flag, err)
				t.Setenv(s.Env, tt.values[1])
				_, err = layers(t, "--"+s.Flag, tt.bad).Settings(good)
				starts("--"+s.Flag, err)
			}
			t.Setenv(s.Env, tt.bad)
			_, err := layers(t).Settings(good)
			starts(s.Env, err)
			_, err = layers(t).Settings(nil)
			starts(s.Env, err)
			if s.Flag != "" {
				_, err = layers(t, "--"+s.Flag, tt.values[2]).Settings(good)
				if err != nil {
					t.Errorf("a good flag does not hide a bad variable: %v", err)
				}
			}
		})
	}
}

func TestNumbersOfSettingsAreReadExactly(t *testing.T) {
	alone(t)
	for _, v := range []string{"0x40", "064", "64.0", "6e1", " 64", "64 ", "+64", "sixty", "99999999999999999999"} {
		t.Setenv("HALDIR_TOOL_NAME_LIMIT", v)
		if s, err := layers(t).Settings(nil); err == nil {
			t.Errorf("%q is %d", v, s.ToolNameLimit)
		}
	}
	t.Setenv("HALDIR_TOOL_NAME_LIMIT", "64")
	for v, want := range map[string]time.Duration{"0": 0, "7": 7 * time.Second, "250ms": 250 * time.Millisecond, "1d": 24 * time.Hour} {
		t.Setenv("HALDIR_LIST_WAIT", v)
		if s, err := layers(t).Settings(nil); err != nil || s.ListWait != want {
			t.Errorf("%q is %v, %v", v, s.ListWait, err)
		}
	}
}

func TestWhatNobodySetsHasItsDefault(t *testing.T) {
	home := alone(t)
	got, err := layers(t).Settings(config.Empty())
	if err != nil {
		t.Fatal(err)
	}
	want := config.Settings{
		StateDir: filepath.Join(home, ".local", "state", "haldir"), DeniedTools: "hide", ToolNameLimit: 89, ListWait: 4 * time.Second,
		MaxMessage: 32 << 20, Arguments: audit.Detail("redacted"), LogLevel: "auto", LogFormat: "auto", Keyring: "auto", Reload: "confirm",
	}
	if runtime.GOOS == "linux" {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	t.Setenv("XDG_STATE_HOME", "/xdg/state")
	if got, err := layers(t).Settings(nil); err != nil || got.StateDir != "/xdg/state/haldir" {
		t.Errorf("%+v, %v", got, err)
	}
	t.Setenv("XDG_STATE_HOME", "relative") // the specification says to ignore it
	if got, err := layers(t).Settings(nil); err != nil || got.StateDir != want.StateDir {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTheConfigIsLookedForInThreePlacesAndNeverInTheCurrentDirectory(t *testing.T) {
	home := alone(t)
	cwd := t.TempDir()
	t.Chdir(cwd)
	for _, name := range []string{"haldir.yaml", "haldir.yml", ".haldir.yaml", "config.yaml", "haldir/haldir.yaml", ".config/haldir/haldir.yaml", "haldir.json", "haldir.toml", ".env"} {
		write(t, filepath.Join(cwd, name), "HALDIR_LOG_LEVEL=debug\nversion: 1\nupstreams: [{name: evil, command: rm}]\nlog: {level: debug}\n")
	}
	path := func(want string, wantNamed bool, args ...string) {
		t.Helper()
		got, named, err := layers(t, args...).ConfigPath()
		if err != nil || got != want || named != wantNamed {
			t.Errorf("%v: %s, %v, %v; want %s", args, got, named, err, want)
		}
	}
	usual := filepath.Join(home, defaultPlace(), "haldir", "haldir.yaml")
	path(usual, false)

	// Nothing there: only haldir's own tools, not what lies in this directory.
	c, err := layers(t).Find()
	if err != nil || len(c.Upstreams) > 0 || c.Path != "" {
		t.Errorf("%+v, %v", c, err)
	}
	if s, err := layers(t).Settings(c); err != nil || s.LogLevel != "auto" {
		t.Errorf("%+v, %v", s, err)
	}
	write(t, usual, "version: 1\nsession: {agent_id: usual}\n")
	if c, err = layers(t).Find(); err != nil || c.Session.Agent != "usual" || c.Path != usual {
		t.Errorf("%+v, %v", c, err)
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "xdg"))
	path(filepath.Join(home, "xdg", "haldir", "haldir.yaml"), false)
	t.Setenv("HALDIR_CONFIG", "/by/env.yaml")
	path("/by/env.yaml", true)
	path("/by/flag.yaml", true, "--config", "/by/flag.yaml")
	if _, err = layers(t).Find(); err == nil || err.Error() != "the config file /by/env.yaml does not exist" {
		t.Error(err)
	}

	// A relative directory of configuration is not one below the current one.
	t.Setenv("HALDIR_CONFIG", "")
	t.Setenv("XDG_CONFIG_HOME", ".config")
	if got, _, err := layers(t).ConfigPath(); err == nil && !filepath.IsAbs(got) {
		t.Errorf("it is %s", got)
	}
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("HOME", "")
	if _, _, err := layers(t).ConfigPath(); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Error(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAFileThatCannotBeReadIsNoEmptyConfig(t *testing.T) {
	home := alone(t)
	usual := filepath.Join(home, defaultPlace(), "haldir", "haldir.yaml")
	if err := os.MkdirAll(usual, 0o700); err != nil { // a directory where the file should be
		t.Fatal(err)
	}
	if c, err := layers(t).Find(); err == nil {
		t.Errorf("%+v", c)
	}
	if err := os.Remove(usual); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", usual); err != nil { // a link to what is gone
		t.Fatal(err)
	}
	if c, err := layers(t).Find(); err != nil || c.Path != "" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := os.Remove(usual); err != nil {
		t.Fatal(err)
	}
	write(t, usual, "version: 1\nsesion: {}\n")
	if _, err := layers(t).Find(); err == nil || !strings.HasPrefix(err.Error(), usual+":2:1: ") {
		t.Error(err)
	}
}

func TestUnknownVariablesAreReportedWithASuggestion(t *testing.T) {
	got := config.UnknownVariables([]string{
		"HALDIR_CONFIG=x", config.BehindVar + "=/x", "HALDIR_LOG_LEVL=debug", "PATH=/bin", "HALDIR=1", "haldir_config=x", "XHALDIR_CONFIG=x", "HALDIR_POLICIES=[]", "HALDIR_STATEDIR=/x", "HALDIR_SESSION=s",
	})
	var names []string
	for _, g := range got {
		name, rest, _ := strings.Cut(g, ";")
		names = append(names, name)
		if strings.Contains(g, "debug") || strings.Contains(g, "[]") {
			t.Errorf("%s shows a value", g)
		}
		switch name {
		case "HALDIR_LOG_LEVL":
			if rest != ` did you mean "HALDIR_LOG_LEVEL"?` {
				t.Error(g)
			}
		case "HALDIR_STATEDIR":
			if rest != ` did you mean "HALDIR_STATE_DIR"?` {
				t.Error(g)
			}
		case "HALDIR_SESSION":
			if rest != ` did you mean "HALDIR_SESSION_ID"?` {
				t.Error(g)
			}
		}
	}
	if diff := cmp.Diff([]string{"HALDIR_LOG_LEVL", "HALDIR_POLICIES", "HALDIR_STATEDIR", "HALDIR_SESSION"}, names); diff != "" {
		t.Error(diff)
	}
	for _, s := range config.AllSettings() {
		if got := config.UnknownVariables([]string{s.Env + "=x"}); len(got) > 0 {
			t.Errorf("%s is unknown", s.Env)
		}
		if s.Doc == "" || s.Env == "" {
			t.Errorf("%+v is not described", s)
		}
	}
}
