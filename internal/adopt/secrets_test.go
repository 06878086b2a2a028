package adopt_test

import (
	"strings"
	"testing"
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
