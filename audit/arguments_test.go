package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/audit"
)

var details = []audit.Detail{audit.DetailFull, audit.DetailRedacted, audit.DetailDigest}

// redacted returns the recorded text of arguments with the default detail.
func redacted(t testing.TB, arguments string, known ...string) string {
	t.Helper()
	b := audit.NewBody(json.RawMessage(arguments), audit.DetailRedacted, known)
	checkBody(t, b, arguments)
	return string(b.Text)
}

// checkBody checks what holds for every body, whatever the detail.
func checkBody(t testing.TB, b audit.Body, arguments string) {
	t.Helper()
	if b.SHA256 != audit.Hash(sha256.Sum256([]byte(arguments))) || b.Size != uint64(len(arguments)) {
		t.Errorf("digest or size are not of the full arguments %.80q", arguments)
	}
	if len(b.Text) > audit.MaxArguments {
		t.Errorf("%d bytes are recorded of %.80q, more than %d", len(b.Text), arguments, audit.MaxArguments)
	}
	if len(b.Text) > 0 && !json.Valid(b.Text) {
		t.Errorf("what is recorded of %.80q is no JSON: %.200q", arguments, b.Text)
	}
}

func TestSecretsInValuesAreNotRecorded(t *testing.T) {
	// Each line is a secret that this package claims to know by its looks. None
	// is real. They are put together here so that no scanner mistakes this file.
	for name, secret := range map[string]string{
		"OpenAI":              "sk-" + "proj-abcdefghijklmnop1234",
		"Anthropic":           "sk-" + "ant-api03-abcdefghijklmnopqrst_-xyz",
		"Stripe":              "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
		"GitHub":              "gh" + "p_abcdefghijklmnopqrstuvwxyz0123456789",
		"GitHub app":          "gh" + "s_abcdefghijklmnopqrstuvwxyz0123456789",
		"GitHub fine-grained": "github" + "_pat_11ABCDEFG0a1b2c3d4e5f6_a7b8c9d0e1f2",
		"GitLab":              "gl" + "pat-abcdefghijklmnopqrst",
		"Slack bot":           "xox" + "b-123456789012-abcdefghijkl",
		"AWS":                 "AKIA" + "IOSFODNN7EXAMPLE",
		"Google":              "AIza" + "SyA-1234567890abcdefghijklmnopqrstuv",
		"haldir":              "hld_" + "abcdefghijklmnop1234",
		"JSON web token":      "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
		"unsigned token":      "eyJ" + "hbGciOiJub25lIn0.eyJzdWIiOiIxMjM0In0.",
		"PEM":                 "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
		"PKCS 8":              "-----BEGIN " + "PRIVATE KEY-----\nMIIEow\n-----END PRIVATE KEY-----",
		"OpenSSH":             "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----",
		"URL":                 "https://alice:" + "hunter22@example.org/x",
		"database URL":        "postgres://app:" + "p4ss@db.internal:5432/app",
		"URL without a user":  "redis://:" + "hunter22@cache.internal:6379/0",
		"URL with a colon":    "postgres://app:" + "p4:ss@db.internal:5432/app",
		"bearer":              "Authorization: Bearer " + "abcdefghijklmnop.qrstuvwx",
		"lower-case bearer":   "bearer " + "abcdefghijklmnop",
	} {
		quoted, _ := json.Marshal(secret)
		inner, _ := json.Marshal("curl -H '" + secret + "' and more")
		for shape, arguments := range map[string]string{
			"a value":           `{"a":` + string(quoted) + `,"b":2}`,
			"inside a text":     `{"a":` + string(inner) + `}`,
			"in an array":       `{"list":[1,["x",` + string(quoted) + `]]}`,
			"nested":            `{"a":{"b":[{"c":` + string(inner) + `}]}}`,
			"a text on its own": string(quoted),
			"escaped":           `{"a":"` + escaped(secret) + `"}`,
			"in a large body":   `{"pad":"` + strings.Repeat("x", 3000) + `","a":` + string(quoted) + `,"more":"` + strings.Repeat("y", 20000) + `"}`,
		} {
			text := redacted(t, arguments)
			if leaks(text, secret) {
				t.Errorf("%s, %s: recorded %.150s", name, shape, text)
			}
		}
	}
}

// The same with texts drawn from the forms, since a test's own secrets may have
// something in them that gives them away by chance.
func TestSecretsOfEveryFormAreNotRecorded(t *testing.T) {
	forms := map[string]*rapid.Generator[string]{}
	for _, form := range []string{
		`sk-[A-Za-z0-9_-]{16,40}`, `sk_live_[A-Za-z0-9]{10,30}`, `sk_test_[A-Za-z0-9]{10,30}`, `gh[pousr]_[A-Za-z0-9]{20,40}`,
		`github_pat_[A-Za-z0-9_]{20,80}`, `glpat-[A-Za-z0-9_-]{16,30}`, `xox[abprs]-[A-Za-z0-9-]{10,40}`, `AKIA[0-9A-Z]{16}`,
		`AIza[0-9A-Za-z_-]{30,40}`, `hld_[A-Za-z0-9]{16,40}`, `eyJ[A-Za-z0-9_-]{8,40}\.[A-Za-z0-9_-]{8,40}\.[A-Za-z0-9_-]{0,40}`,
		`-----BEGIN (RSA |EC |OPENSSH |ENCRYPTED |)PRIVATE KEY-----`, `[a-z]{2,9}://[a-z]{0,8}:[A-Za-z0-9:]{1,20}@[a-z]{1,9}\.[a-z]{2,3}`,
		`[Bb](earer|EARER) [A-Za-z0-9._~+/-]{16,40}`,
	} {
		forms[form] = rapid.StringMatching(form)
	}
	for form, secrets := range forms {
		t.Run(form, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				secret := secrets.Draw(t, "secret")
				quoted, _ := json.Marshal(secret)
				shape := rapid.SampledFrom([]string{`{"a":%s}`, `[%s]`, `%s`, `{"x":{"y":[1,%s,2]}}`}).Draw(t, "shape")
				arguments := fmt.Sprintf(shape, quoted)
				b := audit.NewBody(json.RawMessage(arguments), audit.DetailRedacted, nil)
				if leaks(string(b.Text), secret) || !strings.Contains(string(b.Text), audit.Redacted) {
					t.Fatalf("%s: recorded %s", arguments, b.Text)
				}
			})
		})
	}
}

// Names in every spelling, with a value that looks like nothing.
func TestSecretNamesInEverySpellingAreHidden(t *testing.T) {
	names := rapid.StringMatching(
		`(x[-_]|my|user_|)(password|passwd|passphrase|secret|token|api[-_]?key|authorization|credential|private[-_]?key|cookie|session[-_]?key|bearer|signature)(s|_2|)`)
	rapid.Check(t, func(t *rapid.T) {
		name := []rune(names.Draw(t, "name"))
		for i := range name {
			if rapid.Bool().Draw(t, "upper") {
				name[i] = unicode.ToUpper(name[i])
			}
		}
		quoted, _ := json.Marshal(string(name))
		arguments := fmt.Sprintf(`{"a":{%s:"hunter2"}}`, quoted)
		b := audit.NewBody(json.RawMessage(arguments), audit.DetailRedacted, nil)
		if strings.Contains(string(b.Text), "hunter2") {
			t.Fatalf("%s: recorded %s", arguments, b.Text)
		}
	})
}

// escaped writes every character of s as a JSON escape.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// leaks reports whether any text or name in a JSON document contains secret.
func leaks(text, secret string) bool {
	if strings.Contains(text, secret) {
		return true
	}
	var v any
	if json.Unmarshal([]byte(text), &v) != nil {
		return false
	}
	var in func(v any) bool
	in = func(v any) bool {
		switch v := v.(type) {
		case string:
			if strings.Contains(v, secret) {
				return true
			}
			// The head of a body that was cut is JSON inside JSON.
			unescaped := strings.NewReplacer(`\n`, "\n", `\"`, `"`).Replace(v)
			return strings.Contains(unescaped, secret)
		case []any:
			for _, x := range v {
				if in(x) {
					return true
				}
			}
		case map[string]any:
			for k, x := range v {
				if strings.Contains(k, secret) || in(x) {
					return true
				}
			}
		}
		return false
	}
	return in(v)
}

func TestValuesOfSecretNamesAreNotRecorded(t *testing.T) {
	for _, name := range []string{
		"password", "Password", "PASSWORD", "passwd", "passphrase", "db_password", "userPassword", "secret", "client_secret",
		"clientSecret", "token", "access_token", "accessToken", "id_token", "api_key", "apikey", "api-key", "apiKey", "X-Api-Key",
		"authorization", "Proxy-Authorization", "auth", "x-auth", "credential", "credentials", "private_key", "privateKey",
		"cookie", "Set-Cookie", "session_key", "bearer", "signature", `pass\u0077ord`, `p\u0061ssword`,
		"pa\u017f\u017fword", // the long s folds to s
	} {
		for _, value := range []string{`"hunter2"`, `12345`, `["hunter2",{"x":"hunter2"}]`, `{"value":"hunter2","n":12345}`, `true`} {
			for _, form := range []string{`{"a":1,"%s":%s,"z":2}`, `[{"%s" : %s}]`, `{"deep":{"er":[{"%s":%s}]}}`} {
				arguments := fmt.Sprintf(form, name, value)
				text := redacted(t, arguments)
				if strings.Contains(text, "hunter2") || strings.Contains(text, "12345") || !strings.Contains(text, audit.Redacted) {
					t.Errorf("%s: recorded %s", arguments, text)
				}
			}
		}
	}
}

// Redaction must hide the value and nothing else.
func TestRedactionTouchesNothingElse(t *testing.T) {
	for _, c := range []struct{ arguments, want string }{
		{`{"z":1.0,"a":1e2,"password":"x","big":12345678901234567890123,"neg":-0,"e":1E+2,"small":0.10}`, `{"z":1.0,"a":1e2,"password":"[redacted]","big":12345678901234567890123,"neg":-0,"e":1E+2,"small":0.10}`},
		{`{"token":{"a":[1,2]},"list":[3,2,1],"n":null,"t":true,"f":false}`, `{"token":"[redacted]","list":[3,2,1],"n":null,"t":true,"f":false}`},
		{`{"b":1,"b":2,"secret":3,"a":4}`, `{"b":1,"b":2,"secret":"[redacted]","a":4}`},
		{`{"html":"<b>&amp;</b>","token":1}`, `{"html":"<b>&amp;</b>","token":"[redacted]"}`},
		{`{"Ünï":"☕","token":1}`, `{"Ünï":"☕","token":"[redacted]"}`},
		{`{"":"","token":1}`, `{"":"","token":"[redacted]"}`},
		{`[]`, `[]`},
		{`{}`, `{}`},
		{`null`, `null`},
		{`1.0`, `1.0`},
		{`"x"`, `"x"`},
		{`{"password":"a","password":"b"}`, `{"password":"[redacted]","password":"[redacted]"}`},
		{`{"a":["token","password"]}`, `{"a":["token","password"]}`}, // a word is no secret
		{`{"a":{"token":1},"b":{"x":1}}`, `{"a":{"token":"[redacted]"},"b":{"x":1}}`},
		{`{"token":{},"x":{"y":"z"}}`, `{"token":"[redacted]","x":{"y":"z"}}`},
	} {
		if got := redacted(t, c.arguments); got != c.want {
			t.Errorf("%s: recorded %s, want %s", c.arguments, got, c.want)
		}
	}
	// What has nothing to hide is recorded as it was sent, spaces and all.
	plain := "{ \"a\" : 1.0,\n\t\"b\" : [ 1e5 , \"x\" ] }"
	if got := redacted(t, plain); got != plain {
		t.Errorf("recorded %q, want %q", got, plain)
	}
}

// Names are matched by parts of words, so some harmless values are hidden. The
// digest tells them apart still. Whoever narrows the pattern moves a line.
func TestTheseNamesAreHiddenThoughTheyHoldNoSecret(t *testing.T) {
	for _, name := range []string{
		"max_tokens", "maxTokens", "next_page_token", "tokenizer", "secretary", "compass", "passenger_count", "bypass_cache",
		"cookie_policy", "signature_algorithm", "password_policy",
	} {
		if got := redacted(t, `{"`+name+`":100}`); !strings.Contains(got, audit.Redacted) {
			t.Errorf("%s is no longer hidden: say so in the docs and move the name", name)
		}
	}
	for _, name := range []string{"author", "authors", "authored_by", "key", "keys", "path", "session_id", "session", "user", "monkey", "keyboard"} {
		if got := redacted(t, `{"`+name+`":100}`); strings.Contains(got, audit.Redacted) {
			t.Errorf("%s is hidden: %s", name, got)
		}
	}
}

// The other side of it: secrets that neither their name nor their looks give
// away to this package. A list to shorten, not to keep.
func TestTheseSecretsAreRecorded(t *testing.T) {
	for name, arguments := range map[string]string{
		"AWS temporary key":        `{"id":"ASIA` + `IOSFODNN7EXAMPLE"}`,
		"AWS secret key":           `{"access_key":"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}`,
		"npm":                      `{"a":"npm_` + `abcdefghijklmnopqrstuvwxyz0123456789"}`,
		"Hugging Face":             `{"a":"hf_` + `abcdefghijklmnopqrstuvwxyz01234567"}`,
		"Stripe restricted":        `{"a":"rk_` + `live_4eC39HqLyjWDarjtT1zdp7dc"}`,
		"Slack app":                `{"a":"xapp-` + `1-A0123-1234567890-abcdef"}`,
		"SendGrid":                 `{"a":"SG.` + `abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789abcdefg"}`,
		"Google OAuth":             `{"a":"ya29.` + `a0AfH6SMBabcdefghijklmnop"}`,
		"basic authentication":     `{"h":"Basic ` + `YWxpY2U6aHVudGVyMg=="}`,
		"PGP":                      `{"a":"-----BEGIN PGP ` + `PRIVATE KEY BLOCK-----"}`,
		"a name and value apart":   `{"env":[{"name":"DB_PASSWORD","value":"hunter2"}]}`,
		"an environment list":      `{"env":["DB_PASSWORD=hunter2"]}`,
		"pwd":                      `{"pwd":"hunter2"}`,
		"a one-time code":          `{"otp":"123456"}`,
		"a secret in another name": `{"sk-` + `proj-abcdefghijklmnop1234":1}`,
	} {
		if got := redacted(t, arguments); strings.Contains(got, audit.Redacted) {
			t.Errorf("%s is hidden now: strike it from this list", name)
		}
	}
}

// known are the config's own secrets: resolved references, which the design
// never lets into the audit.
func TestKnownSecretsAreNotRecordedWhereverTheyStand(t *testing.T) {
	for _, known := range []string{"correct horse", `battery"staple\`, "8675309", "paßwört☕", "line\nbreak", "<tag>&", "a/b"} {
		q, _ := json.Marshal(known)
		quoted := string(q)
		inner := strings.Trim(quoted, `"`)
		for shape, arguments := range map[string]string{
			"a value":          `{"a":` + quoted + `}`,
			"part of a value":  `{"a":"before ` + inner + ` after"}`,
			"in an array":      `[1,[` + quoted + `]]`,
			"escaped":          `{"a":"` + escaped(known) + `"}`,
			"a name":           `{` + quoted + `:1}`,
			"part of a name":   `{"x ` + inner + ` y":{"z":1}}`,
			"in a large body":  `{"a":` + quoted + `,"pad":"` + strings.Repeat("x", 3*audit.MaxArguments) + `"}`,
			"after a long one": `{"pad":"` + strings.Repeat("x", 2000) + `","a":` + quoted + `,"pad2":"` + strings.Repeat("x", 2*audit.MaxArguments) + `"}`,
		} {
			if text := redacted(t, arguments, "", known); leaks(text, known) {
				t.Errorf("%q, %s: recorded %.150s", known, shape, text)
			}
		}
	}
}

func TestAKnownSecretOfDigitsIsNotRecordedAsANumber(t *testing.T) {
	if text := redacted(t, `{"pin":8675309,"x":[8675309]}`, "8675309"); strings.Contains(text, "8675309") {
		t.Errorf("recorded %s", text)
	}
}

// NewBody: "known are texts that must not appear in it whatever their looks".
// A config that records arguments in full does not lift that.
func TestKnownSecretsAreNotRecordedInFullDetailEither(t *testing.T) {
	b := audit.NewBody(json.RawMessage(`{"a":"correct horse"}`), audit.DetailFull, []string{"correct horse"})
	if strings.Contains(string(b.Text), "correct horse") {
		t.Errorf("recorded %s", b.Text)
	}
}

func TestTheDetailDecidesHowMuchIsRecorded(t *testing.T) {
	const arguments = `{"password":"hunter2","n":1.0}`
	for d, want := range map[audit.Detail]string{
		audit.DetailFull: arguments, audit.DetailRedacted: `{"password":"[redacted]","n":1.0}`, audit.DetailDigest: "",
		"": `{"password":"[redacted]","n":1.0}`, "unheard of": `{"password":"[redacted]","n":1.0}`, // a doubt records less
	} {
		b := audit.NewBody(json.RawMessage(arguments), d, nil)
		checkBody(t, b, arguments)
		if string(b.Text) != want {
			t.Errorf("%q: recorded %s, want %s", d, b.Text, want)
		}
	}
	for _, d := range details {
		b := audit.NewBody(nil, d, nil)
		checkBody(t, b, "")
		if b.Text != nil {
			t.Errorf("%s: recorded %q of nothing", d, b.Text)
		}
	}
}

// The caller may reuse its buffer.
func TestABodyDoesNotShareMemoryWithTheArguments(t *testing.T) {
	for _, d := range details {
		raw := []byte(`{"a":"b","c":[1,2]}`)
		b := audit.NewBody(raw, d, nil)
		before := bytes.Clone(b.Text)
		for i := range raw {
			raw[i] = 'x'
		}
		if !bytes.Equal(before, b.Text) {
			t.Errorf("%s: the body changed with the arguments", d)
		}
	}
}

func TestALargeBodyIsCutAndSaysSo(t *testing.T) {
	for _, fill := range []string{"x", "é", "☕", `\"`, `\u0001`, "<", "&", " ", `\\`, `\ud83d\ude00`} {
		for _, d := range details {
			t.Run(fmt.Sprintf("%s/%q", d, fill), func(t *testing.T) {
				for _, size := range []int{audit.MaxArguments - 20, audit.MaxArguments, audit.MaxArguments + 1, 3 * audit.MaxArguments, 1 << 18} {
					arguments := `{"first":1.0,"a":"` + strings.Repeat(fill, size/len(fill)) + `"}`
					b := audit.NewBody(json.RawMessage(arguments), d, nil)
					checkBody(t, b, arguments)
					if t.Failed() {
						return // one size is enough
					}
					if d == audit.DetailDigest || len(arguments) <= audit.MaxArguments {
						continue
					}
					if d == audit.DetailRedacted && !bytes.Contains(b.Text, []byte("truncated")) {
						continue // unescaped it was small enough
					}
					var cut struct {
						Truncated bool
						Size      int
						Head      string
					}
					if err := json.Unmarshal(b.Text, &cut); err != nil {
						t.Fatal(err)
					}
					if !cut.Truncated || cut.Size != len(arguments) || !strings.HasPrefix(cut.Head, `{"first":1.0,"a":"`) {
						t.Fatalf("%d bytes: recorded %.100s", size, b.Text)
					}
				}
			})
		}
	}
}

// large are arguments of some five million bytes, each hard for a reader in another way.
func large(size int) map[string]string {
	pad := func(s string) string { return strings.Repeat(s, size/len(s)) }
	return map[string]string{
		"one text":             `{"path":"/tmp/x","text":"` + pad("lorem ipsum ") + `"}`,
		"a text of escapes":    `{"text":"` + pad(`\u0041`) + `"}`,
		"a text of quotes":     `{"text":"` + pad(`\"`) + `"}`,
		"a secret's value":     `{"password":"` + pad("x") + `"}`,
		"a secret list":        `{"password":[` + pad("1,") + `1]}`,
		"many numbers":         `[` + pad("1,") + `1]`,
		"many small objects":   `[` + pad(`{"a":1},`) + `{}]`,
		"many names":           `{` + pad(`"k":"v",`) + `"z":1}`,
		"one long name":        `{"` + pad("k") + `":1}`,
		"nothing but brackets": pad("["),
		"spaces":               `{"a":1` + pad(" ") + `}`,
		"almost a token":       `{"a":"` + pad("eyJaaaaaaaaa.") + `"}`,
		"almost a URL":         `{"a":"` + pad("://aaaaaaaa:") + `"}`,
	}
}

var known = []string{"correct horse", "battery staple"}

// What takes the square of their length would not end.
func TestFiveMegabytesAreRecorded(t *testing.T) {
	for name, arguments := range large(5 << 20) {
		for _, d := range details {
			b := audit.NewBody(json.RawMessage(arguments), d, known)
			if strings.HasPrefix(name, "nothing but") {
				continue // no JSON; see TestWhatIsRecordedIsAlwaysJSON
			}
			checkBody(t, b, arguments)
		}
	}
}

// An agent that writes a file sends its whole text. Recording it must cost about what
// hashing and checking it costs, which "least" is, not what rewriting and searching it would.
func BenchmarkBody(b *testing.B) {
	for name, arguments := range large(5 << 20) {
		b.Run(name+"/least", func(b *testing.B) {
			for b.Loop() {
				_ = sha256.Sum256([]byte(arguments))
				_ = json.Valid([]byte(arguments))
			}
		})
		for _, d := range details {
			b.Run(name+"/"+string(d), func(b *testing.B) {
				for b.Loop() {
					_ = audit.NewBody(json.RawMessage(arguments), d, known)
				}
			})
		}
	}
}

// What a record holds is shown as JSON inside JSON: one body that is none would
// make a whole export unreadable. The reader of messages lets nothing malformed
// in; a record must not depend on it.
func TestWhatIsRecordedIsAlwaysJSON(t *testing.T) {
	for _, arguments := range []string{
		`{"a":`, `{"a":1`, `{"a" 1}`, `{"token":1}{"b":2}`, `{"token":1} trailing`, `[1,2`, `nonsense`, `"open`, `{"password"}`, `{"password":}`,
		`{"password":"x"`, `{"token":[1,2}`, ` `, `{"a":01,"token":1}`, "{\"a\":\"\x01\",\"token\":1}", "{\"a\":\"\xff\",\"token\":1}", "\xff",
		`{"a":"\ud800","token":1}`, `{"a":"\ud800"}`, `{"a":"\x"}`, `tru`, `-`, `{"a":NaN}`, strings.Repeat("[", 20000), strings.Repeat(`{"a":`, 20000),
		strings.Repeat("[", 5000) + `"token"`, strings.Repeat("[", 11000) + strings.Repeat("]", 11000), strings.Repeat(" ", 9000), strings.Repeat("x", 9000),
	} {
		for _, d := range details {
			checkBody(t, audit.NewBody(json.RawMessage(arguments), d, []string{"known"}), arguments)
		}
	}
}

// documents draws JSON texts with the odd secret in them.
func documents() *rapid.Generator[string] {
	names := rapid.SampledFrom([]string{"a", "b", "password", "max", "token", "é", "", "api_key", "x y"})
	numbers := rapid.SampledFrom([]string{"0", "-0", "1.0", "1e2", "1E-2", "12345678901234567890", "0.10", "-1.50"})
	words := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"hunter2", "known secret", "<&>", "\u2028", "😀"}))
	quote := func(s string) string { q, _ := json.Marshal(s); return string(q) }
	var value func(depth int) *rapid.Generator[string]
	value = func(depth int) *rapid.Generator[string] {
		leaf := rapid.OneOf(numbers, rapid.Map(words, quote), rapid.SampledFrom([]string{"true", "false", "null"}))
		if depth == 0 {
			return leaf
		}
		inner := rapid.Deferred(func() *rapid.Generator[string] { return value(depth - 1) })
		return rapid.OneOf(leaf,
			rapid.Map(rapid.SliceOfN(inner, 0, 4), func(s []string) string { return "[" + strings.Join(s, ",") + "]" }),
			rapid.Custom(func(t *rapid.T) string {
				var members []string
				for range rapid.IntRange(0, 4).Draw(t, "members") {
					members = append(members, quote(names.Draw(t, "name"))+":"+inner.Draw(t, "value"))
				}
				return "{" + strings.Join(members, ",") + "}"
			}))
	}
	return value(4)
}

// skeleton returns the tokens of a JSON text with every string's text and every
// number's spelling, and each value that stands under a secret's name, or has
// the known text in it, replaced as the package promises.
func skeleton(t *rapid.T, text string, expectRedacted bool) string {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	secret := map[string]bool{"password": true, "token": true, "api_key": true}
	var out strings.Builder
	var walk func(hide bool)
	walk = func(hide bool) {
		tok, err := dec.Token()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		switch x := tok.(type) {
		case json.Delim:
			mute := out.Len()
			out.WriteRune(rune(x))
			for dec.More() {
				sub := false
				if x == '{' {
					name, err := dec.Token()
					if err != nil {
						t.Fatal(err)
					}
					fmt.Fprintf(&out, "%q:", name)
					sub = expectRedacted && secret[name.(string)]
				}
				walk(sub)
				out.WriteByte(',')
			}
			end, _ := dec.Token()
			fmt.Fprint(&out, end)
			if hide {
				s := out.String()[:mute]
				out.Reset()
				fmt.Fprintf(&out, "%s%q", s, audit.Redacted)
			}
		case string:
			if hide || expectRedacted && strings.Contains(x, "known secret") {
				x = audit.Redacted
			}
			fmt.Fprintf(&out, "%q", x)
		default:
			if hide {
				x = audit.Redacted
				fmt.Fprintf(&out, "%q", x)
			} else {
				fmt.Fprintf(&out, "%v", x)
			}
		}
	}
	walk(false)
	return out.String()
}

// Whatever the document: order, names, numbers as they are spelt, and all texts
// but the secrets survive; the secrets do not.
func TestRedactionKeepsADocumentsShape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		arguments := documents().Draw(t, "arguments")
		b := audit.NewBody(json.RawMessage(arguments), audit.DetailRedacted, []string{"known secret"})
		if !json.Valid(b.Text) {
			t.Fatalf("%s: no JSON: %s", arguments, b.Text)
		}
		if strings.Contains(string(b.Text), "known secret") {
			t.Fatalf("%s: recorded %s", arguments, b.Text)
		}
		if len(arguments) > audit.MaxArguments {
			return // it is cut, and has another shape
		}
		want, got := skeleton(t, arguments, true), skeleton(t, string(b.Text), false)
		if want != got {
			t.Fatalf("%s\nrecorded %s\nwant %s\n got %s", arguments, b.Text, want, got)
		}
	})
}

func FuzzNewBody(f *testing.F) {
	f.Add([]byte(`{"password":"x","a":[1.0,{"b":null}]}`), "known")
	f.Add([]byte(`{"a":"\u006bnown"}`), "known")
	f.Add([]byte(`{"a":`), "")
	f.Fuzz(func(t *testing.T, raw []byte, known string) {
		if len(known) < 3 || strings.Contains(audit.Redacted, known) || strings.Contains(`{"truncated":true,"size":,"head":"","unreadable":true}`, known) {
			known = "correct horse"
		}
		for _, d := range details {
			b := audit.NewBody(raw, d, []string{known})
			checkBody(t, b, string(raw))
		}
	})
}
