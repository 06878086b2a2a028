package config_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/config"
)

// FuzzParse holds that reading a config ends, does not panic, gives the same
// twice, and blames places that the file has.
func FuzzParse(f *testing.F) {
	for _, file := range []string{"../../haldir.yaml", "../../cmd/haldir/demo.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, g := range golden(f) {
		f.Add(g.config)
	}
	for _, text := range []string{
		"", "version: 1\n", "{\"version\":1}", "version: 1\nsession: &a {agent_id: *a}\n", "version: 1\n---\nversion: 1\n",
		"version: 1\npolicies:\n  - {type: deny, tools: &t [a], when: \"args.a == 1\"}\n  - {type: allow, tools: *t}\n",
		"version: 1\npolicies: [{type: deny_list, tool: a}, {type: rate_limit, max_per_minute: 5}, {type: time_window, start_hour: 22, end_hour: 6}]\n",
		"version: 1\nupstreams:\n  - {name: a, url: \"https://x.example\", headers: [\"A: ${env:B}\"], auth: {type: bearer, token: \"${file:/x}\"}}\n",
		"version: 1\nupstreams: [{name: fs, command: x}]\npolicies: [{type: deny, tools: [FS__ȺȺ, fs__x, \"*__x\"], when: 'tool == \"fs/x\"'}]\n",
		"version: 1\r\npolices: |\r\n  a\r\n  b\r\n", "version: 1\nsession: {agent_id: \"\\u00fc\\ud83d\\ude00\", scops: []}\n", "version: !!int 1\n<<: {}\n? a\n: b\n", "%YAML 1.2\n---\nversion: 1\n...\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		late := time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("reading does not end: %q", data)) })
		defer late.Stop()
		c, err := config.Parse(data, "f")
		again, err2 := config.Parse(data, "f")
		if err != nil {
			problems, ok := err.(config.Problems)
			if !ok || len(problems) == 0 || err2 == nil || err.Error() != err2.Error() {
				t.Fatalf("%v, then %v", err, err2)
			}
			for i, p := range problems {
				if p.File != "f" || p.Message == "" || p.Warning {
					t.Errorf("%+v", p)
				}
				if i > 0 && (p.Line < problems[i-1].Line || p.Line == problems[i-1].Line && p.Column < problems[i-1].Column) {
					t.Errorf("%v comes after %v", p, problems[i-1])
				}
				inside(t, string(data), p)
			}
			return
		}
		if err2 != nil {
			t.Fatal(err2)
		}
		for _, diff := range []string{
			cmp.Diff(c.Session, again.Session), cmp.Diff(c.Upstreams, again.Upstreams), cmp.Diff(c.Ruleset, again.Ruleset, compareRules), cmp.Diff(c.Warnings, again.Warnings),
			cmp.Diff(c.SHA256, again.SHA256), cmp.Diff(c.Engine.Rules(), again.Engine.Rules()),
		} {
			if diff != "" {
				t.Error(diff)
			}
		}
		for _, p := range c.Warnings {
			inside(t, string(data), p)
		}
		for _, u := range c.Upstreams {
			if u.Name == "" || (u.URL == "") == (u.Command == "") {
				t.Errorf("%+v", u)
			}
		}
	})
}
