package policy_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

// peopled is a world with rules that ask a person, and rules about loops, among the others.
// Every rule has an id, so that it is the same one where others are left out.
func peopled(t *rapid.T) world {
	rs := randomRuleset(t)
	for range rapid.IntRange(1, 4).Draw(t, "rules of people") {
		r := policy.Rule{
			Type: policy.TypeApproval, Shadow: rapid.IntRange(0, 3).Draw(t, "shadow") == 0, Tools: some(t, "tools", somePatterns, 2), When: pick(t, "when", someWhens),
			Timeout: pick(t, "timeout", []time.Duration{time.Second, time.Minute, time.Hour}), Once: rapid.Bool().Draw(t, "once"),
		}
		if len(r.Tools) == 0 {
			r.Tools = []string{"*"}
		}
		if rapid.IntRange(0, 2).Draw(t, "loop") == 0 {
			r.Type, r.Timeout, r.Once = policy.TypeLoop, 0, false
			r.MaxRepeats, r.Window = rapid.Int64Range(1, 4).Draw(t, "repeats"), pick(t, "window", []time.Duration{time.Second, time.Minute, time.Hour})
		}
		i := rapid.IntRange(0, len(rs.Policies)).Draw(t, "at")
		rs.Policies = slices.Insert(rs.Policies, i, r)
	}
	for i := range rs.Policies {
		rs.Policies[i].ID = fmt.Sprintf("r%d", i)
	}
	w := world{rules: rs, engine: compile(t, rs), call: randomCall(t)}
	w.state = randomState(t, w.engine, w.call, w.engine.Reads(w.call))
	return w
}

func isApproval(r policy.Rule) bool { return r.Type == policy.TypeApproval }

// unasked is the engine without the rules that ask.
func (w world) unasked(t tb) *policy.Engine {
	rs := w.rules
	rs.Policies = slices.DeleteFunc(slices.Clone(rs.Policies), isApproval)
	return compile(t, rs)
}

// Once a person has allowed a call, what is decided is what would be without the rules that
// ask: no more, and no less, but for conditions of theirs that nobody can decide.
func TestAPersonsWordAnswersTheRulesThatAskAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := peopled(t)
		want := w.unasked(t).Decide(w.call, w.state)
		s := w.state
		s.Granted = true
		got := w.engine.Decide(w.call, s)
		if got.Verdict == policy.Ask {
			t.Fatalf("it asks once more: %+v", got)
		}
		if got.Verdict == policy.Allow && want.Verdict != policy.Allow {
			t.Fatalf("a person's word lets through what is against %+v", want)
		}
		if undecided(w, got) {
			return
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-without rules that ask +with a person's word:\n%s", diff)
		}
	})
}

// undecided reports whether a rule that asks has a condition that nobody can decide, which
// counts against the call.
func undecided(w world, d policy.Decision) bool {
	against := append([]policy.Finding{{Policy: d.Policy, Rule: d.Rule}}, d.Also...)
	return slices.ContainsFunc(against, func(f policy.Finding) bool {
		return f.Policy == policy.PolicyCondition && slices.ContainsFunc(w.rules.Policies, func(r policy.Rule) bool { return isApproval(r) && r.ID == f.Rule })
	})
}

// A rule that asks turns an Allow into an Ask and nothing else into anything else; what it
// asks is what the rules say together.
func TestARuleThatAsksDecidesNothing(t *testing.T) {
	asked := 0
	check := func(t tb, w world) {
		without := w.unasked(t).Decide(w.call, w.state)
		with := w.engine.Decide(w.call, w.state)
		if undecided(w, with) {
			return
		}
		var asks []string // also beside a denial
		if with.Question != nil {
			asks = with.Question.Rules
		}
		switch {
		case without.Verdict == policy.Deny:
			also := slices.DeleteFunc(slices.Clone(with.Also), func(f policy.Finding) bool { return f.Policy == string(policy.TypeApproval) && f.Shadow })
			with.Also = also
			if len(also) == 0 {
				with.Also = nil
			}
			with.Question = nil // it is not asked
			if diff := cmp.Diff(without, with); diff != "" {
				t.Fatalf("-without rules that ask +with them:\n%s", diff)
			}
		case with.Verdict == policy.Deny:
			t.Fatalf("%+v becomes %+v", without, with)
		case with.Verdict == policy.Ask:
			asked++
			q := with.Question
			want := policy.Question{Session: true}
			for _, r := range w.rules.Policies {
				if slices.Contains(q.Rules, r.ID) {
					if !isApproval(r) || r.Shadow {
						t.Fatalf("rule %+v asks", r)
					}
					if want.Timeout == 0 || r.Timeout < want.Timeout {
						want.Timeout = r.Timeout
					}
					want.Rules, want.Session = append(want.Rules, r.ID), want.Session && !r.Once
				}
			}
			if diff := cmp.Diff(&want, q); diff != "" {
				t.Fatalf("the question: %s", diff)
			}
			if len(with.Holds) > 0 || with.Policy != string(policy.TypeApproval) || with.Rule != q.Rules[0] || with.Reason == "" || with.Cost != without.Cost {
				t.Fatalf("%+v", with)
			}
		case with.Question != nil:
			t.Fatalf("%+v", with)
		}
		// Every rule that concerns the call asks.
		_, lines := w.engine.Explain(w.call, w.state)
		for _, l := range lines {
			if l.Policy == string(policy.TypeApproval) && l.Applies && !l.Shadow && !slices.Contains(asks, l.Rule) {
				t.Fatalf("%+v does not ask", l)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) { check(t, peopled(t)) })
	worlds := rapid.Custom(peopled)
	for seed := range 400 {
		check(t, worlds.Example(seed))
	}
	if asked < 20 {
		t.Errorf("only %d worlds ask", asked)
	}
}

// Explain says the same with such rules, granted or not, and which one decides.
func TestExplainAgreesAboutPeople(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := peopled(t)
		w.state.Granted = rapid.Bool().Draw(t, "granted")
		want := w.engine.Decide(w.call, w.state)
		got, lines := w.engine.Explain(w.call, w.state)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("Explain decides otherwise: %s", diff)
		}
		found := map[string]bool{}
		for _, f := range append([]policy.Finding{{Policy: want.Policy, Rule: want.Rule, Reason: want.Reason}}, want.Also...) {
			found[f.Rule+"|"+f.Reason] = f.Reason != ""
		}
		decides := 0
		for _, l := range lines {
			if !l.Applies && !l.Passes || l.Passes && l.Decides {
				t.Fatalf("%+v", l)
			}
			if l.Decides {
				decides++
				if l.Policy != want.Policy || l.Rule != want.Rule || l.Why != want.Reason {
					t.Fatalf("%+v is said to decide, but it is %+v", l, want)
				}
			}
			asks := l.Policy == string(policy.TypeApproval)
			switch {
			case asks && w.state.Granted && !l.Passes:
				t.Fatalf("a person has allowed it, and %+v", l)
			case asks && !l.Passes && l.Shadow != found[l.Rule+"|"+l.Why] && want.Verdict != policy.Ask:
				t.Fatalf("%+v, and found is %+v", l, want.Also)
			case !asks && !l.Passes && !found[l.Rule+"|"+l.Why]:
				t.Fatalf("%+v was not found", l)
			case l.Passes && l.Policy == string(policy.TypeLoop) && l.Applies && l.Counter.Used >= l.Counter.Limit:
				t.Fatalf("%+v passes", l)
			}
		}
		if (decides == 1) != (want.Verdict != policy.Allow) {
			t.Fatalf("%d lines decide of %+v", decides, want)
		}
	})
}

// What was prepared is decided alike with such rules too.
func TestAPreparedCallOfPeopleIsDecidedAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := peopled(t)
		w.state.Granted = rapid.Bool().Draw(t, "granted")
		want := w.engine.Decide(w.call, w.state)
		prepared := w.call
		w.engine.Prepare(&prepared)
		for range 2 {
			if diff := cmp.Diff(want, w.engine.Decide(prepared, w.state)); diff != "" {
				t.Fatalf("prepared (-not prepared +prepared):\n%s", diff)
			}
		}
	})
}

// spelling writes a value as JSON in one of many ways that mean the same.
func spelling(t *rapid.T, v any) string {
	space := func() string { return pick(t, "space", []string{"", "", " ", "\n\t"}) }
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		keys = rapid.Permutation(keys).Draw(t, "order")
		parts := make([]string, len(keys))
		for i, k := range keys {
			parts[i] = space() + spelling(t, k) + space() + ":" + spelling(t, v[k])
		}
		return space() + "{" + strings.Join(parts, ",") + space() + "}" + space()
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = spelling(t, x)
		}
		return space() + "[" + strings.Join(parts, ",") + "]" + space()
	case string:
		var b strings.Builder
		for _, r := range v {
			switch {
			case rapid.IntRange(0, 2).Draw(t, "escape") == 0:
				for _, u := range utf16.Encode([]rune{r}) {
					fmt.Fprintf(&b, pick(t, "case", []string{`\u%04x`, `\u%04X`}), u)
				}
			case r == '"' || r == '\\':
				b.WriteString(`\` + string(r))
			case r == '/' && rapid.Bool().Draw(t, "slash"):
				b.WriteString(`\/`)
			case r < 0x20:
				fmt.Fprintf(&b, `\u%04x`, r)
			default:
				b.WriteRune(r)
			}
		}
		return `"` + b.String() + `"`
	case json.Number:
		return spellNumber(t, string(v))
	}
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(text)
}

// spellNumber writes digits and a power of ten in one of many ways.
func spellNumber(t *rapid.T, text string) string {
	digits, power, _ := strings.Cut(text, "e")
	digits, negative := strings.CutPrefix(digits, "-")
	exponent, _ := strconv.Atoi(power)
	zeros := rapid.IntRange(0, 3).Draw(t, "zeros")
	digits, exponent = digits+strings.Repeat("0", zeros), exponent-zeros
	after := rapid.IntRange(0, len(digits)-1).Draw(t, "point")
	whole, fraction := digits[:len(digits)-after], digits[len(digits)-after:]
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	if negative {
		whole = "-" + whole
	}
	if fraction != "" {
		whole += "." + fraction
	}
	if exponent += after; exponent != 0 || rapid.Bool().Draw(t, "needless") {
		sign := ""
		if exponent >= 0 {
			sign = pick(t, "sign", []string{"", "+", "0", "+00"})
		}
		if exponent < 0 {
			return whole + pick(t, "e", []string{"e", "E"}) + "-" + pick(t, "pad", []string{"", "0"}) + strconv.Itoa(-exponent)
		}
		return whole + pick(t, "e", []string{"e", "E"}) + sign + strconv.Itoa(exponent)
	}
	return whole
}

// anyValue draws a value; two that are drawn alike mean the same, others do not.
func anyValue(t *rapid.T, deep int) any {
	switch rapid.IntRange(0, 6).Draw(t, "kind") {
	case 0:
		return rapid.Bool().Draw(t, "bool")
	case 1:
		return nil
	case 2:
		return json.Number(fmt.Sprintf("%de%d", rapid.IntRange(-30, 30).Draw(t, "digits"), rapid.IntRange(-3, 3).Draw(t, "power")))
	case 3, 4:
		if deep > 0 {
			list := make([]any, rapid.IntRange(0, 3).Draw(t, "elements"))
			for i := range list {
				list[i] = anyValue(t, deep-1)
			}
			return list
		}
	case 5:
		if deep > 0 {
			return anyObject(t, deep-1)
		}
	}
	return rapid.StringOfN(rapid.SampledFrom([]rune("a/\"\\é🙂<\u2028\x01")), 0, 4, -1).Draw(t, "text")
}

func anyObject(t *rapid.T, deep int) map[string]any {
	m := map[string]any{}
	for range rapid.IntRange(0, 3).Draw(t, "members") {
		m[rapid.StringOfN(rapid.SampledFrom([]rune("ab<é")), 0, 2, -1).Draw(t, "key")] = anyValue(t, deep)
	}
	return m
}

// same reports whether two values mean the same, by the arithmetic of a library.
func same(a, b any) bool {
	return cmp.Equal(a, b, cmp.Comparer(func(a, b json.Number) bool {
		x, _ := new(big.Rat).SetString(string(a))
		y, _ := new(big.Rat).SetString(string(b))
		return x.Cmp(y) == 0
	}))
}

// A loop rule counts calls with the same arguments, however they are spelt, and only those;
// it refuses neither before max_repeats nor after its window, whatever else is called.
func TestALoopRuleCountsWhatMeansTheSame(t *testing.T) {
	type counted struct {
		tool  string
		args  any
		start time.Time
		n     int64
	}
	rapid.Check(t, func(t *rapid.T) {
		const window = time.Minute
		most := rapid.Int64Range(1, 4).Draw(t, "max")
		e := compile(t, rules(policy.Rule{Type: policy.TypeLoop, ID: "loop", MaxRepeats: most, Window: window}))
		var seen []*counted
		var values []any
		b, s := book{}, free()
		for range rapid.IntRange(1, 40).Draw(t, "calls") {
			s.Now = s.Now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			if len(values) == 0 || rapid.IntRange(0, 3).Draw(t, "new") == 0 {
				values = append(values, anyObject(t, 2))
			}
			args, tool := pick(t, "arguments", values), pick(t, "tool", []string{"files/read", "files/write", "pay/read"})
			i := slices.IndexFunc(seen, func(c *counted) bool { return c.tool == tool && same(c.args, args) })
			if i < 0 {
				i = len(seen)
				seen = append(seen, &counted{tool: tool, args: args})
			}
			c := seen[i]
			if c.n == 0 || !s.Now.Before(c.start.Add(window)) {
				c.start, c.n = s.Now, 0
			}
			text := spelling(t, args)
			d := b.decide(e, call(tool, text), s)
			if (d.Verdict == policy.Allow) != (c.n < most) {
				t.Fatalf("%s, called %d times before in this window: %v %s", text, c.n, d.Verdict, d.Reason)
			}
			if d.Verdict == policy.Allow {
				c.n++
			} else if !d.RetryAt.Equal(c.start.Add(window)) || d.Policy != "loop" {
				t.Fatalf("retry at %v, but the window ends at %v", d.RetryAt, c.start.Add(window))
			}
		}
	})
}

// Arguments that look alike and are not.
func TestALoopRuleTellsApart(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeLoop, MaxRepeats: 1, Window: time.Hour}))
	b := book{}
	different := []string{
		`{}`, `{"a":1}`, `{"a":"1"}`, `{"a":1.0000000000000001}`, `{"a":10}`, `{"a":-1}`, `{"a":0}`, `{"a":null}`, `{"a":[]}`, `{"a":{}}`, `{"a":[1]}`, `{"A":1}`, `{"a":""}`,
		`{"a":1e400}`, `{"a":1e401}`, `{"a":1e99999999999999999999}`, `{"a":12345678901234567890123}`, `{"a":12345678901234567890124}`, `{"a":true}`, `{"a":"true"}`,
		`{"a":"\ud800"}`, `{"a":"\ud801"}`, `{"a":"\ufffd"}`, `{"a":[1,2]}`, `{"a":[2,1]}`, `{"a":"é"}`, `{"a":"e\u0301"}`, `{"a":1,"b":1}`, `{"b":1}`,
	}
	for _, args := range different {
		if d := b.decide(e, call("files/read", args), free()); d.Verdict != policy.Allow {
			t.Errorf("%s counts as another: %s", args, d.Reason)
		}
	}
	for _, args := range []string{
		``, ` {} `, `{"a":1.0}`, `{"a":1e0}`, `{"a":0.1E+1}`, `{"a":100e-2}`, `{"a":-0}`, `{"a":0e5}`, `{"a":0.000}`, `{"a":10e399}`, `{"\u0061":1}`, `{"b":1.00,"a":1}`,
		`{"a":"\u00e9"}`, `{"a":[1.0,2]}`,
	} {
		if d := b.decide(e, call("files/read", args), free()); d.Verdict != policy.Deny || d.Policy != "loop" {
			t.Errorf("%s counts as a new one", args)
		}
	}
}
