package policy_test

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/policy"
)

func FuzzParseUSD(f *testing.F) {
	for _, s := range []string{
		"0", "-0", "1", "0.004", "0.0000001", "1e-400", "1e400", "1e9", "1e999999999", "-1e-400", "1000000000.000000001", "NaN", "Infinity", "0x1p4", "1_0", "+1", "01", ".5", "5.", "1/3", "",
		"9223372036854.775808", "999999999.9999999", "123456789.123456", strings.Repeat("9", 65),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := policy.ParseUSD(s)
		if err != nil {
			if got != 0 || len(err.Error()) > 300 {
				t.Fatalf("%d, %v", got, err)
			}
		} else if got < 0 || got > 1_000_000_000*policy.USD || !json.Valid([]byte(s)) || strings.TrimSpace(s) != s {
			t.Fatalf("ParseUSD(%q) = %d", s, got)
		}
		if beyond(s) {
			return
		}
		if want, ok := refUSD(s); ok != (err == nil) || want != got {
			t.Fatalf("ParseUSD(%q) = %d, %v; want %d, %v", s, got, err, want, ok)
		}
	})
}

// reading is what encoding/json makes of arguments, for comparison.
type reading struct {
	strings []string // keys too
	twins   bool     // an object has keys that are equal but for case
	value   any
}

func read(raw []byte) (r reading, ok bool) {
	if !json.Valid(raw) {
		return r, false
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	r.value, ok = r.next(dec)
	return r, ok
}

func (r *reading) next(dec *json.Decoder) (any, bool) {
	token, err := dec.Token()
	if err != nil {
		return nil, false
	}
	switch v := token.(type) {
	case string:
		r.strings = append(r.strings, v)
		return v, true
	case json.Delim:
		if v == '[' {
			list := []any{}
			for dec.More() {
				e, ok := r.next(dec)
				if !ok {
					return nil, false
				}
				list = append(list, e)
			}
			_, err := dec.Token()
			return list, err == nil
		}
		obj := map[string]any{}
		for dec.More() {
			key, err := dec.Token()
			k, ok := key.(string)
			if err != nil || !ok {
				return nil, false
			}
			for other := range obj {
				r.twins = r.twins || strings.EqualFold(k, other)
			}
			r.strings = append(r.strings, k)
			if obj[k], ok = r.next(dec); !ok {
				return nil, false
			}
		}
		_, err := dec.Token()
		return obj, err == nil
	}
	return token, true
}

// FuzzDecide lets arbitrary bytes be the arguments, and holds a call that is
// allowed against what encoding/json reads in them.
func FuzzDecide(f *testing.F) {
	for _, a := range someArguments {
		f.Add([]byte(a))
	}
	for _, a := range []string{
		`{"amount":"0.004","mode":"safe"}`, `{"amount":5,"force":true}`, `{"amount":1,"force":false,"path":"\/etc\/passwd"}`, `{"amount":1,"l":[[["/srv/../etc"]]]}`, `{"amount":1,"mode":"danger"}`,
		`{"amount":1,"o":{"é":1,"É":2}}`, `{"amount":1,"amount":9}`, `{"amount":1,"\u0061mount":9}`, `{"amount":1,"n":1e400}`, `{"amount":1,"s":"\ud800"}`, "{\"amount\":1,\"s\":\"\xff\"}", `{"amount":1,}`,
		` { "amount" : 1.5e0 , "l" : [ 1 , -0 , 2.5 , null , true ] } `, `{"amount":1,"a":"}","b":"\\","c":"\""}`, `{"amount":18446744073709551616}`, `{"amount":1,"n":18446744073709551616}`,
	} {
		f.Add([]byte(a))
	}
	e, err := policy.Compile(policy.Ruleset{Costs: costs(), Policies: []policy.Rule{
		{Type: policy.TypeDeny, When: `has(args.force) && args.force == true`},
		{Type: policy.TypeAllow, Tools: []string{"*"}, When: `args.?mode.orValue("") != "danger"`},
		{Type: policy.TypeDeny, When: `strings(args).exists(s, under(s, "/etc"))`},
		{Type: policy.TypeSpendLimit, MaxUSD: 5 * policy.USD},
		{Type: policy.TypeRateLimit, MaxCalls: 1, Window: 1, Shadow: true, When: `args == {"amount": 1} || args.l == [1]`},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, args []byte) {
		if len(args) > 1<<12 {
			return // large ones are another test's
		}
		c := policy.Call{Session: "ses_1", Agent: "bot", Upstream: "pay", Tool: "a", Arguments: bytes.Clone(args)}
		d := e.Decide(c, free())
		if diff := cmp.Diff(d, e.Decide(c, free())); diff != "" {
			t.Fatalf("-first +second\n%s", diff)
		}
		if !bytes.Equal(args, c.Arguments) {
			t.Fatal("Decide changed the arguments")
		}
		if len(d.Reason) > 1000 {
			t.Fatalf("a reason of %d bytes", len(d.Reason))
		}
		if d.Verdict != policy.Allow {
			return
		}
		// The rules have looked at every value, so nothing may be left in doubt.
		r, ok := read(args)
		obj, isObject := r.value.(map[string]any)
		if !ok || !isObject || r.twins {
			t.Fatalf("allowed, but %q is no object that everybody reads alike", args)
		}
		if obj["force"] == true || obj["mode"] == "danger" {
			t.Fatalf("allowed with %q", args)
		}
		for _, s := range r.strings {
			if p := path.Clean(s); p == "/etc" || strings.HasPrefix(p, "/etc/") {
				t.Fatalf("allowed with %q in %q", s, args)
			}
		}
		text, isText := obj["amount"].(string)
		if n, isNumber := obj["amount"].(json.Number); isNumber {
			text = n.String()
		} else if !isText {
			t.Fatalf("allowed without an amount: %q", args)
		}
		if usd, err := policy.ParseUSD(text); err != nil || usd != d.Cost || usd > 5*policy.USD {
			t.Fatalf("%q costs %v, %v, but %v is charged", args, usd, err, d.Cost)
		}
	})
}
