package adopt_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/secret"
)

// Passwords in addresses and passwords of digits are kept in the store; a limit of tokens is
// no secret.
func TestPasswordsAreKept(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {"db": {"command": "db", "args": ["postgresql://u:argument1@host"], "env": {
		"DATABASE_URL": "postgres://admin:hunter2secret@db/app", "REDIS_URL": "redis://:pass4redis@db",
		"DB_PASSWORD": "482913", "API_KEY": "123456", "MAX_TOKENS": "4096", "MAX_TOKENS_PASSWORD": "771144"}}}}`)
	plan := p.plan()
	if _, err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := p.all()[".config/haldir/haldir.yaml"]
	for _, secret := range []string{"hunter2secret", "pass4redis", "482913", "123456", "771144"} {
		if strings.Contains(config, secret) {
			t.Errorf("%s is in haldir.yaml: %s", secret, config)
		}
	}
	if !strings.Contains(config, "MAX_TOKENS=4096") {
		t.Errorf("a limit is no secret: %s", config)
	}
	masks := strings.Join(plan.Masks, "\n")
	if !strings.Contains(masks, "hunter2secret") || !strings.Contains(masks, "postgresql://u:argument1@host") {
		t.Errorf("masks: %q", masks)
	}
	if !strings.Contains(strings.Join(plan.Notes, "\n"), "an argument looks like a secret") {
		t.Errorf("notes: %q", plan.Notes)
	}
}

// A secret among the arguments is told of and masked by the name of its flag, header, variable
// or parameter, in every file that is shown: also in one that stays and in haldir.yaml.
func TestSecretsInArgumentsAreMasked(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {
		"supabase": {"command": "npx", "args": ["@supabase/mcp-server-supabase", "--access-token=sbp_0123456789"]},
		"linear": {"command": "npx", "args": ["mcp-remote", "https://a.example.com/sse", "--header", "Authorization: Bearer lin_api_0123"]},
		"stays": {"command": "docker", "disabled": true, "args": ["run", "-e", "MY_TOKEN=abcdefgh", "image"]}}}`)
	p.write(".config/haldir/haldir.yaml", "version: 1\nupstreams:\n  - {name: there, command: x, args: [--api-key, keyofmine]}\n")
	plan := p.plan()
	for _, secret := range []string{"sbp_0123456789", "lin_api_0123", "abcdefgh", "keyofmine"} {
		if !slices.Contains(plan.Masks, secret) {
			t.Errorf("%s is shown; masks: %q", secret, plan.Masks)
		}
	}
	notes := strings.Join(plan.Notes, "\n")
	for _, name := range []string{"supabase", "linear"} {
		if !strings.Contains(notes, name+": an argument looks like a secret") {
			t.Errorf("nothing is said of %s: %s", name, notes)
		}
	}
	if _, err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	undo, err := adopt.Last(p.o.StateDir, p.o.Host, p.store)
	if err != nil || !slices.Contains(undo.Masks, "sbp_0123456789") || !slices.Contains(undo.Masks, "lin_api_0123") {
		t.Errorf("the way back shows a secret: %v, %v", undo, err)
	}
}

// A secret inside of a value is kept apart from what is around it, and the server gets the value
// as it was, byte for byte.
func TestPartsOfValuesAreKept(t *testing.T) {
	p := newPerson(t)
	env := map[string]string{
		"OPENAPI_MCP_HEADERS": `{"Authorization": "Bearer secret-1", "Notion-Version": "2022-06-28"}`,
		"ACCOUNT":             `{"type":"service","client_secret":"secret-2","n":{"list":[{"apiKey":"secret-\u00333\\\"x"}]}}`,
		"CONN":                "Server=db;User Id=sa;Password=secret-4;Encrypt=true",
		"DSN":                 "host=h password='secret-5 $ ${' dbname=d",
		"WEBHOOK":             "https://discord.com/api/webhooks/1/secret-6",
		"AT":                  "https://a.example.com/s/secret-7a1b2c3d4e5f/mcp?team=1",
		"OPTIONS":             "--api-key secret-8 --verbose",
		"HARMLESS":            `{"a": "https://a.example.com/@scope/name@1.2.3"}`,
	}
	headers := map[string]string{"X-Custom": "secret-9", "X-Plain": "text"}
	const address = "https://mcp.zapier.com/s/secret-10a1b2c3d4e5/mcp?x=1&key=secret-11#f"
	raw := must(json.Marshal(map[string]any{"mcpServers": map[string]any{"a": map[string]any{"command": "a", "env": env}, "b": map[string]any{"url": address, "headers": headers}}}))(t)
	p.write(".cursor/mcp.json", string(raw))
	must(p.plan().Do(t.Context()))(t)
	if config := p.all()[".config/haldir/haldir.yaml"]; strings.Contains(config, "secret-") || !strings.Contains(config, "Notion-Version") {
		t.Errorf("in haldir.yaml: %s", config)
	}
	gets := p.gets(p.store)
	for name, value := range env {
		if got := gets["a."+name]; got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
	for name, value := range headers {
		if got := gets["b."+name]; got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
	if gets["b"] != address {
		t.Errorf("the url: %s", gets["b"])
	}
}

// Whatever a value is, the server gets it as it was.
func TestValuesArriveAsTheyWere(t *testing.T) {
	part := rapid.SampledFrom([]string{"--token ", "password=", "Pwd=", ";", "{\"apiKey\": \"", "[", "\"", "'", "\\", " ", "\n", "$ ", "https://h/", "?key=", "&", "#", "/", "a1b2c3d4e5f6g7h8", "Bearer ", "abcd", "ntn_0123456789abcdef", "é\u2028"})
	some := rapid.Map(rapid.SliceOfN(part, 0, 5), func(parts []string) string { return strings.Join(parts, "") })
	value := rapid.Custom(func(r *rapid.T) string {
		return some.Draw(r, "before") + rapid.SampledFrom([]string{"", "${"}).Draw(r, "open") + some.Draw(r, "behind")
	})
	rapid.Check(t, func(r *rapid.T) {
		p, kept := newPerson(t), memory{}
		p.o.Store = kept
		env := map[string]string{}
		for i, v := range rapid.SliceOfN(value, 1, 10).Draw(r, "values") {
			env[fmt.Sprintf("V%d", i)] = v
		}
		p.write(".cursor/mcp.json", string(must(json.Marshal(map[string]any{"mcpServers": map[string]any{"a": map[string]any{"command": "a", "env": env}}}))(t)))
		must(p.plan().Do(t.Context()))(t)
		gets := p.gets(kept)
		for name, v := range env {
			if got := gets["a."+name]; got != v {
				r.Errorf("got %q, want %q", got, v)
			}
		}
	})
}

// memory is a store that is gone with the test.
type memory map[string]string

func (m memory) Get(name string) (string, error) {
	if v, ok := m[name]; ok {
		return v, nil
	}
	return "", secret.ErrNotFound
}
func (m memory) Set(name, value string) error { m[name] = value; return nil }
func (m memory) Remove(name string) error     { delete(m, name); return nil }

// gets is what the servers get, by upstream and name.
func (p *person) gets(store adopt.Store) map[string]string {
	p.t.Helper()
	out := map[string]string{}
	r := config.NewResolver("", store.Get, nil)
	for _, u := range must(config.Load(p.o.Config))(p.t).Upstreams {
		out[u.Name] = must(r.Resolve(u.URL))(p.t)
		for _, e := range u.Env {
			name, value, _ := strings.Cut(e, "=")
			out[u.Name+"."+name] = must(r.Resolve(value))(p.t)
		}
		for _, h := range u.Headers {
			out[u.Name+"."+h.Name] = must(r.Resolve(h.Value))(p.t)
		}
	}
	return out
}

// What a diff may show of a client's file is masked as it stands there, and what somebody has
// typed into haldir.yaml, before init and since, also if it cannot be read any more.
func TestWhatDiffsShowIsMasked(t *testing.T) {
	p := newPerson(t)
	const cursor, yaml = ".cursor/mcp.json", ".config/haldir/haldir.yaml"
	p.write(cursor, `// TOKEN=hidden-0
	{"mcpServers": {
		// "old": {"env": {"API_KEY": "hidden-f"}},
		"goes": {"url": "https://a.example.com/mcp?tavilyApiKey=hidden-1"},
		"stays": {"url": "https://b.example.com/mcp?exaApiKey=hidden-2", "disabled": true},
		"talk": {"command": "x", "disabled": true, "description": "`+strings.Repeat("hidden ", 1000)+`TOKEN=abcdef"},
		"off": {"command": "x", "disabled": true, "args": ["--token", "hidden\/3"], "env": {"DB_PASSWORD": "hidden\/4", "CONN": "Password=hidden\u002d5;X=y"}}}}`)
	p.write(yaml, `version: 1
upstreams:
  - {name: a, url: "https://c.example.com/mcp?key=hidden-6", auth: {type: oauth, client_id: x, client_secret: hidden-7}}
  - {name: b, command: b, env: ['PASSWORD=it''s-hidden-8'], args: ["x"]} # once it was ghp_hidden90123456789abcd
  - name: c
    command: c
    env:
      - |-
        KEY=hidden-a
        hidden-b
`)
	hides := func(masks []string, files ...string) {
		t.Helper()
		slices.SortFunc(masks, func(a, b string) int { return len(b) - len(a) })
		for _, file := range files {
			text := p.all()[file]
			for _, m := range masks {
				text = strings.ReplaceAll(text, m, "")
			}
			if strings.Contains(text, "hidden") {
				t.Errorf("shown: %s", text)
			}
		}
	}
	plan := p.plan()
	hides(plan.Masks, cursor, yaml)
	must(plan.Do(t.Context()))(t)
	_, now, _ := strings.Cut(p.all()[yaml], " ")
	p.write(yaml, strings.Replace(now, "upstreams:\n", "upstreams:\n  - {name: d, command: d, env: [TOKEN=hidden-c]}\n", 1))
	p.write(cursor, `{"mcpServers": {"haldir": {"command": "haldir", "args": ["serve"]}, "new": {"env": {"API_KEY": "hidden-d"}`)
	undo := must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	hides(undo.Masks, cursor, yaml)
	p.write(yaml, now+"  - {name: d, command: d, env: [TOKEN=hidden-e]\n")
	undo = must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t)
	hides(undo.Masks, yaml)
}
