package adopt_test

import (
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/policy"
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

// What is denied where the person is not would be offered there: haldir is in every project.
// It is denied everywhere, and that is told. So it is where the project has its own server of the name,
// beside which the person's is offered by then.
func TestRulesOfOtherProjects(t *testing.T) {
	p := newPerson(t)
	p.write(".claude.json", `{
  "mcpServers": {"gh": {"command": "gh"}, "own": {"command": "own"}},
  "projects": {
    "$HOME/project": {},
    "$HOME/Mein Projekt/ü": {},
    "$HOME/gone": {},
    "$HOME/apart": {"mcpServers": {"own": {"command": "another"}}},
    "relative": {}
  }
}`)
	p.write("Mein Projekt/ü/.claude/settings.json", `{"permissions": {"deny": ["mcp__gh__ok"], "allow": ["mcp__gh__get"]}, "hooks": {"PreToolUse": [{"matcher": "mcp__gh__.*"}]}}`)
	p.write("Mein Projekt/ü/.claude/settings.local.json", `{"permissions": {"ask": ["mcp__gh__zap"]}}`)
	p.write("apart/.claude/settings.json", `{"permissions": {"deny": ["mcp__own__x"]}}`)
	plan := p.plan()
	said := p.said(plan)
	for _, want := range []string{
		"gh: what $HOME/Mein Projekt/ü/.claude/settings.json says held in that project alone, and by the policy claude-deny-gh it holds everywhere",
		"gh: what $HOME/Mein Projekt/ü/.claude/settings.local.json says held in that project alone, and by the policy claude-ask-gh it holds everywhere",
		"own: what $HOME/apart/.claude/settings.json says held in that project alone, and by the policy claude-deny-own it holds everywhere",
		"gh: the hook for mcp__gh__.* in $HOME/Mein Projekt/ü/.claude/settings.json does not match",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not told:\n%s", want, said)
		}
	}
	if strings.Contains(said, "mcp__gh__get") {
		t.Errorf("told without need:\n%s", said)
	}
	if _, err := plan.Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := p.engine()
	for tool, want := range map[string]policy.Verdict{"gh/ok": policy.Deny, "gh/zap": policy.Ask, "gh/get": policy.Allow, "own/x": policy.Deny} {
		if got := verdict(e, tool); got != want {
			t.Errorf("%s: %v, want %v", tool, got, want)
		}
	}
}

// Claude Code writes _ for characters that a name may have and a rule of it may not.
func TestRulesOfNamesThatClaudeCodeSpellsAnew(t *testing.T) {
	p := newPerson(t)
	p.write(".claude.json", `{"mcpServers": {"my.gh ü 😀": {"command": "gh"}}}`)
	p.write(".claude/settings.json", `{"permissions": {"deny": ["mcp__my_gh_______repo_delete", "mcp__my_gh_______x_*"], "ask": ["mcp__my_gh_______a_b"]}}`)
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := p.engine()
	for tool, want := range map[string]policy.Verdict{
		"repo.delete": policy.Deny, "repo_delete": policy.Deny, "repo/delete": policy.Deny, "repo.deleted": policy.Allow,
		"x y z": policy.Deny, "x": policy.Allow, "a/b": policy.Ask, "a_b": policy.Ask, "ab": policy.Allow,
	} {
		if got := verdict(e, "my-gh/"+tool); got != want {
			t.Errorf("%s: %v, want %v", tool, got, want)
		}
	}
}

// A client names the tools that it does not offer; haldir has patterns.
func TestWithheldToolsThatReadAsPatterns(t *testing.T) {
	p := newPerson(t)
	p.write(".codeium/windsurf/mcp_config.json", `{"mcpServers": {"mail": {"command": "mail", "disabledTools": ["a[b", "x*", "w?", "b\\s"]}}}`)
	if _, err := p.plan().Do(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := p.engine()
	for tool, want := range map[string]policy.Verdict{"a[b": policy.Deny, "x*": policy.Deny, "w?": policy.Deny, `b\s`: policy.Deny, "xy": policy.Allow, "we": policy.Allow} {
		if got := verdict(e, "mail/"+tool); got != want {
			t.Errorf("%s: %v, want %v", tool, got, want)
		}
	}
}

// The starter policy asks about what destroys or moves money, however its name is put together,
// and about nothing whose name merely has the same letters.
func TestStarterPolicy(t *testing.T) {
	p := newPerson(t)
	p.write(".cursor/mcp.json", `{"mcpServers": {"t": {"command": "t"}}}`)
	must(p.plan().Do(t.Context()))(t)
	e := p.engine()
	for want, tools := range map[policy.Verdict]string{
		policy.Ask: `delete deletefile removeall deletedatabase removedevice purgedata terminateinstances revokeaccess wipedisk eraseall truncatetable uninstallapp droptable deletefeed purge_feed purgefeed removebed chargebed
			chargecard refundorder transferfunds pay_and_get_receipt transfer_list_ownership find_and_buy delete_x deleteFile DeleteUser bulkDelete bulk_delete_files DELETE_ITEM batch.delete x/delete remove_x RemoveUser userRemove bulk-remove-x x-remove
			dropTable drop-database db_drop table-drop-all db.dropTable x_destroy x_truncate instance_terminate x-purge cache_purge bulk_wipe eraseDisk key_revoke UNINSTALL-APP
			git_force_push forcePush kill_process unlink_file docker_rm
			pay payInvoice pay_invoice PAY_BILL make_payment createPayment create-payment payments_create create_payout issue_refund createRefund sendPayment stripe_charge CHARGE_CARD
			transfer_funds bankTransfer send_money withdraw_funds`,
		policy.Allow: `deleted deletedItems destroyed uninstalled list_refunded getPayment LIST_CHARGES get_dropbox_file DROPBOX_LIST_FILES dropbox-upload list_deleted LIST_DELETED getDeletedItems removed_items undelete_file createDroplet open_dropdown airdrop-info raindrop_add
			paypal_get_invoice PAYPAL_CREATE_INVOICE payload_get getPayload payroll_view list_payments get_refund retrieveCharge search_transfers recharge_info get_removal terminator
			killer_whale reinforce workforce_add enforce_policy read_file write_file create_issue alarm_set form_fill`,
	} {
		for tool := range strings.FieldsSeq(tools) {
			if got := verdict(e, "t/"+tool); got != want {
				t.Errorf("%s: %v, want %v", tool, got, want)
			}
		}
	}
}

// engine judges by the haldir.yaml that there is.
func (p *person) engine() *policy.Engine {
	p.t.Helper()
	cfg, err := config.Load(p.o.Config)
	if err != nil {
		p.t.Fatal(err)
	}
	return cfg.Engine
}

func verdict(e *policy.Engine, tool string) policy.Verdict {
	upstream, name, _ := strings.Cut(tool, "/")
	return e.Decide(policy.Call{Upstream: upstream, Tool: name, Arguments: []byte("{}")}, policy.State{Session: policy.SessionState{AllScopes: true}}).Verdict
}
