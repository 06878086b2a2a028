package approval_test

import (
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/approval"
)

// TestTheLineOfArguments: some hosts show no more of a form than its first lines.
func TestTheLineOfArguments(t *testing.T) {
	for arguments, want := range map[string]string{
		``:                                 "without arguments",
		`{}`:                               "without arguments",
		`{"table":"a","force":true}`:       "force: true · table: a",
		`{"to":"Bob Roe, Ltd."}`:           "to: Bob Roe, Ltd.",
		`{"to":"https://x.example/a?b=c"}`: `to: "https://x.example/a?b=c"`,
		// A text is no number, and no more than one argument.
		`{"n":"5","m":5,"on":"true"}`:                                                                     `m: 5 · n: "5" · on: "true"`,
		`{"to":"bob · amount_usd: 5","amount_usd":9000}`:                                                  `amount_usd: 9000 · to: "bob · amount_usd: 5"`,
		`{"to":"bob\" · amount_usd: 5","amount_usd":9000}`:                                                `amount_usd: 9000 · to: "bob\" · amount_usd: 5"`,
		`{"a · amount_usd: 5 · b":"x","amount_usd":9000}`:                                                 `amount_usd: 9000 · "a · amount_usd: 5 · b": x`,
		`{"to":"bob ∶ 5"}`:                                                                                `to: "bob ∶ 5"`,
		`{"x":[1],"memo":"` + strings.Repeat("long ", 30) + `","amount_usd":9000}`:                        `amount_usd: 9000 · memo: long long long long long long long long…`,
		`{"a":"` + strings.Repeat("x", 39) + `","b":"` + strings.Repeat("y", 39) + `","amount_usd":9000}`: `amount_usd: 9000 · a: ` + strings.Repeat("x", 39) + ` · b: yyyyyy`,
		`{"a":"\u202e\u0007"}`:                                                                            `a: "⟨U+202E⟩⟨U+0007⟩"`,
	} {
		q := approval.Question{ID: "apr_1", Tool: "db/pay", Agent: "bot", Rules: []string{"look"}, Arguments: []byte(arguments), Command: "haldir"}
		lines := strings.Split(q.Message(), "\n")
		if got := lines[1]; !strings.HasPrefix(got, want) {
			t.Errorf("%s is shown as\n%s, want\n%s", arguments, got, want)
		}
	}
}
