package config_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
)

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.Parse([]byte(text), "haldir.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheReferenceConfigLoadsWithoutAWarning(t *testing.T) {
	c, err := config.Load("../../haldir.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
	if len(c.Upstreams) != 5 || len(c.Ruleset.Policies) != 9 {
		t.Errorf("%d upstreams, %d policies", len(c.Upstreams), len(c.Ruleset.Policies))
	}
}

func TestMistakesCarryTheirPlaceAndASuggestion(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a key nobody knows", "version: 1\nsesion: {}\n", `haldir.yaml:2:1: unknown key "sesion"; did you mean "session"?`},
		{"a key of a policy", "version: 1\npolicies:\n  - {type: spend_limit, maxx_usd: 5}\n", `haldir.yaml:3:25: policies[0]: unknown key "maxx_usd"; did you mean "max_usd"?`},
		{"a policy type", "version: 1\npolicies:\n  - {type: denny, tools: [x]}\n", `haldir.yaml:3:12: policies[0].type: unknown policy type "denny"; did you mean "deny"?`},
		{"a key of another type", "version: 1\npolicies:\n  - {type: deny, tools: [x], max_usd: 5}\n", `haldir.yaml:3:39: policies[0].max_usd: is no key of deny, but of spend_limit; it has none of its own`},
		{"no value", "version: 1\nsession: {agent_id: }\n", `haldir.yaml:2:11: session.agent_id: has no value`},
		{"no version", "session: {}\n", `haldir.yaml: version: is missing; the file needs: version: 1`},
		{"a later version", "version: 2\n", `haldir.yaml:1:10: version: is 2; this haldir knows version 1`},
		{"two upstreams of a name", "version: 1\nupstreams:\n  - {name: a, command: x}\n  - {name: a, command: y}\n", `haldir.yaml:4:12: upstreams[1].name: "a" is already the name of upstreams[0]`},
		{"the reserved name", "version: 1\nupstreams:\n  - {name: haldir, command: x}\n", `haldir.yaml:3:12: upstreams[0].name: the name haldir is reserved for haldir's own tools`},
		{"http to another machine", "version: 1\nupstreams:\n  - {name: a, url: \"http://example.com/mcp\"}\n", `haldir.yaml:3:20: upstreams[0].url: must be an https URL; http is for this machine (localhost) only`},
		{"a limit that is no number", "version: 1\npolicies:\n  - {type: spend_limit, max_usd: .nan}\n", `haldir.yaml:3:34: policies[0].max_usd: ".nan" is no decimal number`},
		{"a negative limit", "version: 1\nsession: {spend_limit: -1}\n", `haldir.yaml:2:24: session.spend_limit: the amount -1 is negative`},
		{"a rate without a window", "version: 1\npolicies:\n  - {type: rate_limit, max_calls: 5}\n", `haldir.yaml:3:5: policies[0]: needs window_seconds or window`},
		{"a deny that denies nothing", "version: 1\npolicies:\n  - {type: deny}\n", `haldir.yaml:3:5: policies[0].tools: a deny rule must say what it denies (upstreams: ["*"] denies everything)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse([]byte(tt.text), "haldir.yaml")
			if err == nil {
				t.Fatal("it loads")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOneRunShowsEveryMistakeInTheOrderOfTheirPlaces(t *testing.T) {
	_, err := config.Parse([]byte("version: 1\nsesion: 1\npolicies:\n  - {type: denny}\n  - {type: spend_limit, maxx_usd: 1}\nlist_wit: 2\n"), "f")
	want := "f:2:1: unknown key \"sesion\"; did you mean \"session\"?\nf:4:12: policies[0].type: unknown policy type \"denny\"; did you mean \"deny\"?\n" +
		"f:5:25: policies[1]: unknown key \"maxx_usd\"; did you mean \"max_usd\"?\nf:6:1: unknown key \"list_wit\"; did you mean \"list_wait\"?"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// viper lower-cases keys and splits them at dots; names are values here, so it
// never sees them.
func TestNamesKeepTheirCaseAndTheirDots(t *testing.T) {
	c := parse(t, `version: 1
upstreams:
  - {name: a, command: npx, args: [-y, 1.10, 007, "@X/Y.z"], env: ["GITHUB_TOKEN=x.Y", "Mixed_Case=1"], env_pass: [My_Var]}
  - {name: b, url: "https://example.com/mcp", headers: ["X-Api.Key: AbC"]}
policies:
  - {type: deny, tools: ["Delete.All", "a/Tool.Name"]}
`)
	a, b := c.Upstreams[0], c.Upstreams[1]
	if diff := cmp.Diff([]string{"-y", "1.10", "007", "@X/Y.z"}, a.Args); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"GITHUB_TOKEN=x.Y", "Mixed_Case=1"}, a.Env); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"My_Var"}, a.EnvPass); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]config.Header{{Name: "X-Api.Key", Value: "AbC"}}, b.Headers); diff != "" {
		t.Error(diff)
	}
	for tool, deny := range map[string]bool{"Delete.All": true, "delete.all": false, "Tool.Name": true} {
		d := c.Engine.Decide(policy.Call{Upstream: "a", Tool: tool}, policy.State{Session: policy.SessionState{AllScopes: true}})
		if (d.Verdict == policy.Deny) != deny {
			t.Errorf("%s: %v", tool, d.Verdict)
		}
	}
}

// The five documented shapes of the original product, as JSON.
func TestTheOriginalShapesMeanWhatTheySay(t *testing.T) {
	c := parse(t, `{"version": 1, "policies": [
  {"type": "deny", "tools": ["delete_database", "drop_table", "send_wire_transfer"]},
  {"type": "spend_limit", "max_usd": 50.00, "per": "session"},
  {"type": "rate_limit", "max_calls": 100, "window_seconds": 3600},
  {"type": "time_window", "allowed_hours": {"start": "09:00", "end": "17:00"}, "timezone": "America/New_York"},
  {"type": "allow", "tools": ["scan_domain", "dns_lookup", "whois_lookup", "get_headers"]}
]}`)
	p := c.Ruleset.Policies
	if p[1].MaxUSD != 50*policy.USD || p[2].MaxCalls != 100 || p[2].Window != time.Hour || *p[3].Hours != (policy.Hours{Start: 540, End: 1020}) {
		t.Errorf("%+v", p)
	}
	if len(c.Warnings) > 0 {
		t.Error(c.Warnings)
	}
}

func TestOldSpellingsAreTakenWithAWarningThatNamesTheNewOne(t *testing.T) {
	c := parse(t, `version: 1
policies:
  - {type: deny_list, tools: [a]}
  - {type: allow_list, tools: [b]}
  - {type: block_tool, tool: c}
  - {type: spend_limit, max: 5.5}
  - {type: rate_limit, max: 5, window: 1h}
  - {type: rate_limit, max_per_minute: 7}
  - {type: time_window, start_hour: 9, end_hour: 17}
`)
	var got strings.Builder
	for _, w := range c.Warnings {
		got.WriteString(w.Message + "\n")
	}
	want := `"deny_list" is the old name of "deny"
"allow_list" is the old name of "allow"
"block_tool" is the old name of "deny"
is the old form of tools: [c]
is the old form of max_usd: 5.50
is the old form of max_calls: 5
is the old form of max_calls: 7, window: 1m
start_hour and end_hour are the old form of allowed_hours: {start: "09:00", end: "17:00"}
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	p := c.Ruleset.Policies
	if p[2].Tools[0] != "c" || p[3].MaxUSD != 5_500_000 || p[4].MaxCalls != 5 || p[5].Window != time.Minute || p[6].Hours.End != 1020 {
		t.Errorf("%+v", p)
	}
}

func TestReferencesAreResolvedAtUseAndNamedWhenMissing(t *testing.T) {
	var seen []string
	r := &config.Resolver{
		Root: "/project",
		Env:  func(n string) (string, bool) { return map[string]string{"TOKEN": "s3cret-value"}[n], n == "TOKEN" },
		File: func(n string) ([]byte, error) {
			if n == "/k" {
				return []byte("from-a-file\n"), nil
			}
			return nil, os.ErrNotExist
		},
		Seen: func(s string) { seen = append(seen, s) },
	}
	got, err := r.Resolve("Bearer ${env:TOKEN} ${file:/k} ${root} $${literal}")
	if err != nil || got != "Bearer s3cret-value from-a-file /project ${literal}" {
		t.Errorf("%q, %v", got, err)
	}
	if diff := cmp.Diff([]string{"s3cret-value", "from-a-file"}, seen); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		"${env:NOPE}":  "the variable NOPE, referred to by ${env:NOPE}, is not set",
		"${file:/no}":  "the file of ${file:/no} cannot be read: file does not exist",
		"${vault:x}":   "unknown reference ${vault:x}; known are ${env:NAME}, ${file:PATH}, ${keyring:NAME} and ${root}",
		"a ${env:OPEN": `the reference "${env:OPEN" has no closing brace`,
	} {
		if _, err := r.Resolve(text); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestFlagsWinOverVariablesOverTheFileOverDefaults(t *testing.T) {
	layer := func(args ...string) config.Settings {
		t.Helper()
		f := pflag.NewFlagSet("x", pflag.ContinueOnError)
		f.String("log-level", "", "")
		f.String("state-dir", "", "")
		if err := f.Parse(args); err != nil {
			t.Fatal(err)
		}
		l, err := config.Layer(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Settings(parse(t, "version: 1\nlog: {level: warn}\nlist_wait: 3s\ntool_name_limit: 50\n"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := layer(); s.LogLevel != "warn" || s.ListWait != 3*time.Second || s.ToolNameLimit != 50 || s.DeniedTools != "hide" {
		t.Errorf("%+v", s)
	}
	t.Setenv("HALDIR_LOG_LEVEL", "error")
	t.Setenv("HALDIR_TOOL_NAME_LIMIT", "60")
	if s := layer(); s.LogLevel != "error" || s.ToolNameLimit != 60 {
		t.Errorf("%+v", s)
	}
	if s := layer("--log-level", "debug"); s.LogLevel != "debug" {
		t.Errorf("%+v", s)
	}
}
