package policy_test

import (
	"testing"

	"github.com/haldir-mcp/haldir/policy"
)

// The words of a name are found however it puts them together, and those alone.
func TestWords(t *testing.T) {
	for name, want := range map[string]string{
		"delete_file": `["delete", "file"]`, "deleteFile": `["delete", "file"]`, "DeleteFile": `["delete", "file"]`, "FILE-DELETE": `["file", "delete"]`,
		"db.dropTable": `["db", "drop", "table"]`, "HTTPDelete": `["http", "delete"]`, "delete": `["delete"]`, "s3Delete2": `["s", "delete"]`,
		"a/b c": `["a", "b", "c"]`, "undeleted": `["undeleted"]`, "ÄpfelLöschen": `["äpfel", "löschen"]`, "__1": `[]`, "": `[]`, "X": `["x"]`, "हटाएं_फ़ाइल": `["हटाएं", "फ़ाइल"]`, "lösche": `["lösche"]`, "aB": `["a", "b"]`,
		// Letters that are put together of two, and what is not to be seen.
		"LO\u0308SCHEN_ALLE": `["lo\u0308schen", "alle"]`, "HTTPE\u0301lan": `["http", "e\u0301lan"]`, "deleteO\u0308l": `["delete", "o\u0308l"]`,
		"delete\ufe0f_file": `["delete", "file"]`, "dele\u200bte": `["delete"]`, "dele\u034fte": `["delete"]`,
	} {
		e, err := policy.Compile(policy.Ruleset{Policies: []policy.Rule{{Type: policy.TypeDeny, When: "words(args.name) == " + want}}})
		if err != nil {
			t.Fatal(err)
		}
		call := policy.Call{Upstream: "u", Tool: "t", Arguments: []byte(`{"name":"` + name + `"}`)}
		if d := e.Decide(call, policy.State{Session: policy.SessionState{AllScopes: true}}); d.Verdict != policy.Deny || d.Reason == "" {
			t.Errorf("%q has not the words %s: %v", name, want, d)
		}
		call.Arguments = []byte(`{"name":"another"}`)
		if d := e.Decide(call, policy.State{Session: policy.SessionState{AllScopes: true}}); d.Verdict != policy.Allow {
			t.Errorf("another name has the words %s: %v", want, d)
		}
	}
}
