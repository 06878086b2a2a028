package adopt_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/adopt"
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
