package adopt_test

import (
	"strings"
	"testing"
)

// What init has denied for a server that was there is taken back, also out of a haldir.yaml
// that has gone on since.
func TestUndoOfPoliciesForUpstreamsThatWereThere(t *testing.T) {
	p := newPerson(t)
	p.write(".config/haldir/haldir.yaml", "version: 1\nupstreams:\n  - {name: mail, command: mail}\npolicies:\n  - {type: deny, id: withheld-mail, tools: [mail/x]}\n")
	p.write(".codeium/windsurf/mcp_config.json", `{"mcpServers": {"mail": {"command": "mail", "disabledTools": ["delete_all"]}}}`)
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, now, _ := strings.Cut(p.all()[".config/haldir/haldir.yaml"], " ")
	if !strings.Contains(now, "id: withheld-mail-2, tools: [mail/delete_all]") {
		t.Fatalf("the tool is not denied: %s", now)
	}
	p.write(".config/haldir/haldir.yaml", now+"  - {type: deny, id: later, tools: [mail/y]}\n")
	p.undo(false)
	after := p.all()[".config/haldir/haldir.yaml"]
	if strings.Contains(after, "delete_all") || !strings.Contains(after, "mail/x") || !strings.Contains(after, "later") || !strings.Contains(after, "name: mail") {
		t.Errorf("after undo: %s", after)
	}
}
