package policy_test

import (
	"encoding/json"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/policy"
)

// refUSD is what ParseUSD promises, by exact arithmetic and the grammar of
// encoding/json: micro-dollars rounded up, or false. It must not be given
// exponents that make exact arithmetic explode.
func refUSD(s string) (policy.Micros, bool) {
	if !json.Valid([]byte(s)) || s == "" || strings.Trim(s, "-+.0123456789eE") != "" {
		return 0, false
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || r.Sign() < 0 {
		return 0, false
	}
	r.Mul(r, big.NewRat(int64(policy.USD), 1))
	up := new(big.Int).Add(r.Num(), new(big.Int).Sub(r.Denom(), big.NewInt(1)))
	up.Quo(up, r.Denom())
	if !up.IsInt64() || up.Int64() > 1_000_000_000*int64(policy.USD) {
		return 0, false
	}
	return policy.Micros(up.Int64()), true
}

// beyond reports what ParseUSD may refuse for its form alone, before exact
// arithmetic becomes a weapon.
func beyond(s string) bool {
	_, exp, _ := strings.Cut(strings.ToLower(s), "e")
	n, err := strconv.Atoi(exp)
	return len(s) > 64 || exp != "" && (err != nil || n < -400 || n > 400)
}

func TestParseUSD(t *testing.T) {
	const refused = -1
	tests := []struct {
		name, in string
		want     policy.Micros
	}{
		{"zero", "0", 0},
		{"zero with decimals", "0.00", 0},
		{"minus zero is zero", "-0", 0},
		{"minus zero with decimals and exponent", "-0.0e5", 0},
		{"a dollar", "1", 1_000_000},
		{"four tenths of a cent exactly", "0.004", 4000},
		{"a tenth, which no float holds", "0.1", 100_000},
		{"a micro", "0.000001", 1},
		{"a tenth of a micro is rounded up", "0.0000001", 1},
		{"a micro and a bit is rounded up", "0.00000100000001", 2},
		{"a cent below a float's precision", "123456789.123456", 123_456_789_123_456},
		{"1e-400 is rounded up, not away", "1e-400", 1},
		{"1e-400 written with zeros in front", "0.00000000000001e-386", 1},
		{"an exponent", "1e3", 1_000_000_000},
		{"a big E with plus", "2.5E+2", 250_000_000},
		{"a billion", "1000000000", 1_000_000_000_000_000},
		{"a billion by exponent", "1e9", 1_000_000_000_000_000},
		{"a billion and a micro", "1000000000.000001", refused},
		{"a billion and a billionth, which a float cannot see", "1000000000.000000001", refused},
		{"ten billion", "10000000000", refused},
		{"beyond int64 in micros", "9223372036855", refused},
		{"1e400", "1e400", refused},
		{"the largest float", "1.7976931348623157e308", refused},
		{"an exponent bomb upwards", "1e999999999", refused},
		{"an exponent bomb downwards", "1e-999999999", refused},
		{"an exponent bomb on zero", "0e999999999999999999999", refused},
		{"an exponent beyond int", "1e99999999999999999999", refused},
		{"a negative amount", "-1", refused},
		{"the smallest negative amount", "-1e-400", refused},
		{"a negative amount that is no micro", "-0.0000001", refused},
		{"NaN", "NaN", refused},
		{"nan", "nan", refused},
		{"Infinity", "Infinity", refused},
		{"-Infinity", "-Infinity", refused},
		{"inf", "inf", refused},
		{"nothing", "", refused},
		{"blanks", " ", refused},
		{"a blank before", " 1", refused},
		{"a newline after", "1\n", refused},
		{"a dollar sign", "$1", refused},
		{"a plus", "+1", refused},
		{"two signs", "--1", refused},
		{"a leading zero", "01", refused},
		{"no digit before the point", ".5", refused},
		{"no digit after the point", "5.", refused},
		{"no digit in the exponent", "5e", refused},
		{"a sign alone in the exponent", "5e+", refused},
		{"two points", "1.2.3", refused},
		{"a decimal comma", "1,5", refused},
		{"grouped digits", "1,000", refused},
		{"underscores, which Go reads", "1_000", refused},
		{"hexadecimal, which Go reads", "0x10", refused},
		{"a hexadecimal float", "0x1p4", refused},
		{"octal", "0o17", refused},
		{"a fraction, which big.Rat reads", "1/3", refused},
		{"arabic digits", "١", refused},
		{"fullwidth digits", "１", refused},
		{"a null byte", "1\x00", refused},
		{"a word", "one", refused},
		{"true", "true", refused},
		{"a number of 100,000 digits", strings.Repeat("1", 100_000), refused},
		{"a number of 100,000 decimals", "0." + strings.Repeat("1", 100_000), refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := policy.ParseUSD(tt.in)
			if tt.want == refused {
				if err == nil {
					t.Errorf("got %d, want an error", got)
				} else if len(err.Error()) > 200 {
					t.Errorf("an error of %d bytes", len(err.Error()))
				}
				if got != 0 {
					t.Errorf("an error with the amount %d", got)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestParseUSDEqualsExactArithmetic(t *testing.T) {
	number := rapid.StringMatching(`-?(0|[1-9][0-9]{0,10})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?`)
	noise := rapid.StringMatching(`[-+.0-9eE_x ]{0,12}`)
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			s := rapid.OneOf(number, noise).Draw(t, "s")
			if beyond(s) {
				continue
			}
			want, ok := refUSD(s)
			got, err := policy.ParseUSD(s)
			if (err == nil) != ok || got != want {
				t.Fatalf("ParseUSD(%q) = %d, %v; want %d, %v", s, got, err, want, ok)
			}
		}
	})
}

func TestMicrosAreWrittenAndReadExactly(t *testing.T) {
	tests := []struct {
		in         policy.Micros
		text, json string
	}{
		{0, "$0.00", "0"},
		{1, "$0.000001", "0.000001"},
		{10, "$0.00001", "0.00001"},
		{4000, "$0.004", "0.004"},
		{100_000, "$0.10", "0.1"},
		{1_000_000, "$1.00", "1"},
		{10_000_000, "$10.00", "10"},
		{100_000_000, "$100.00", "100"},
		{25_500_000, "$25.50", "25.5"},
		{-1, "-$0.000001", "-0.000001"},
		{-2_500_000, "-$2.50", "-2.5"},
		{math.MaxInt64, "$9223372036854.775807", "9223372036854.775807"},
		{math.MinInt64, "-$9223372036854.775808", "-9223372036854.775808"},
	}
	for _, tt := range tests {
		raw, err := json.Marshal(tt.in)
		if tt.in.String() != tt.text || string(raw) != tt.json || err != nil {
			t.Errorf("%d: %s %s %v, want %s %s", int64(tt.in), tt.in, raw, err, tt.text, tt.json)
		}
		// Sums and balances may be what no single amount may be.
		var back policy.Micros
		if err := json.Unmarshal([]byte(tt.json), &back); err != nil || back != tt.in {
			t.Errorf("%s is read as %d, %v", tt.json, int64(back), err)
		}
	}
}

func TestAmountsAreReadAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := policy.Micros(rapid.Int64Range(0, 1_000_000_000*int64(policy.USD)).Draw(t, "m"))
		raw, err := json.Marshal(m)
		if err != nil || !json.Valid(raw) {
			t.Fatalf("%s %v", raw, err)
		}
		if back, err := policy.ParseUSD(string(raw)); err != nil || back != m {
			t.Fatalf("%d is written %s and read %d, %v", int64(m), raw, int64(back), err)
		}
		if back, err := policy.ParseUSD(strings.TrimPrefix(m.String(), "$")); err != nil || back != m {
			t.Fatalf("%d is written %s and read %d, %v", int64(m), m, int64(back), err)
		}
	})
}

func TestCostFromArgument(t *testing.T) {
	const refused = -1
	tests := []struct {
		name, at, args string
		want           policy.Micros
	}{
		{"a number", "/amount", `{"amount":12.5}`, 12_500_000},
		{"an integer", "/amount", `{"amount":12}`, 12_000_000},
		{"a number between blanks", "/amount", " {\n\"amount\" :\t12 , \"b\":1}\r\n", 12_000_000},
		{"a decimal string", "/amount", `{"amount":"0.004"}`, 4000},
		{"a decimal string written with escapes", "/amount", `{"amount":"\u0031\u002e5"}`, 1_500_000},
		{"a key written with escapes", "/amount", `{"\u0061mount":2}`, 2_000_000},
		{"a number by exponent", "/amount", `{"amount":1e-3}`, 1000},
		{"below a micro", "/amount", `{"amount":1e-9}`, 1},
		{"zero", "/amount", `{"amount":0}`, 0},
		{"a nested number", "/order/total", `{"order":{"total":3}}`, 3_000_000},
		{"an element of a list", "/items/1/usd", `{"items":[{"usd":1},{"usd":2}]}`, 2_000_000},
		{"a key with a slash", "/a~1b", `{"a/b":4,"a":{"b":5}}`, 4_000_000},
		{"a key with a tilde", "/a~0b", `{"a~b":4}`, 4_000_000},
		{"a key ~1 is not read as a slash twice", "/~01", `{"~1":4,"/":5}`, 4_000_000},
		{"an empty key", "/", `{"":4}`, 4_000_000},
		{"a numeric key of an object", "/0", `{"0":4}`, 4_000_000},
		{"a sibling of twins that differ in case below it", "/amount", `{"amount":4,"o":{"a":1,"A":2}}`, 4_000_000},

		{"a missing key", "/amount", `{}`, refused},
		{"no arguments", "/amount", ``, refused},
		{"a key of another case", "/amount", `{"Amount":1}`, refused},
		{"a key of another case of another length", "/k", `{"\u212a":1}`, refused},
		{"keys that differ in case", "/amount", `{"amount":1,"Amount":100}`, refused},
		{"keys that differ in case on the way", "/o/amount", `{"o":{"amount":1,"AMOUNT":100}}`, refused},
		{"keys that differ in case elsewhere in the object", "/o/amount", `{"o":{"amount":1,"b":1,"B":2}}`, refused},
		{"the key twice", "/amount", `{"amount":1,"amount":100}`, refused},
		{"the key twice, once with an escape", "/amount", `{"amount":1,"\u0061mount":100}`, refused},
		{"null", "/amount", `{"amount":null}`, refused},
		{"true", "/amount", `{"amount":true}`, refused},
		{"false", "/amount", `{"amount":false}`, refused},
		{"a list", "/amount", `{"amount":[1]}`, refused},
		{"an object", "/amount", `{"amount":{"usd":1}}`, refused},
		{"the arguments themselves", "", `{"amount":1}`, refused},
		{"an empty string", "/amount", `{"amount":""}`, refused},
		{"a string with a sign", "/amount", `{"amount":"+1"}`, refused},
		{"a string with blanks", "/amount", `{"amount":" 1 "}`, refused},
		{"a string with a currency", "/amount", `{"amount":"$1"}`, refused},
		{"a string of a list", "/amount", `{"amount":"[1]"}`, refused},
		{"the string NaN", "/amount", `{"amount":"NaN"}`, refused},
		{"the string Infinity", "/amount", `{"amount":"Infinity"}`, refused},
		{"the string -1", "/amount", `{"amount":"-1"}`, refused},
		{"NaN", "/amount", `{"amount":NaN}`, refused},
		{"Infinity", "/amount", `{"amount":Infinity}`, refused},
		{"-Infinity", "/amount", `{"amount":-Infinity}`, refused},
		{"a negative number", "/amount", `{"amount":-0.01}`, refused},
		{"1e400", "/amount", `{"amount":1e400}`, refused},
		{"-1e-400", "/amount", `{"amount":-1e-400}`, refused},
		{"an exponent bomb", "/amount", `{"amount":1e999999999}`, refused},
		{"an exponent bomb downwards", "/amount", `{"amount":1e-999999999}`, refused},
		{"a leading zero", "/amount", `{"amount":01}`, refused},
		{"two numbers", "/amount", `{"amount":1 2}`, refused},
		{"a number with a tail", "/amount", `{"amount":1x}`, refused},
		{"a list index with a leading zero", "/items/01", `{"items":[1,2]}`, refused},
		{"a negative list index", "/items/-1", `{"items":[1,2]}`, refused},
		{"the end of a list", "/items/-", `{"items":[1,2]}`, refused},
		{"beyond the end of a list", "/items/2", `{"items":[1,2]}`, refused},
		{"a huge list index", "/items/99999999999999999999", `{"items":[1,2]}`, refused},
		{"through a string", "/amount/0", `{"amount":"12"}`, refused},
		{"through a number", "/amount/0", `{"amount":12}`, refused},
		{"arguments that are a list", "/0", `[1]`, refused},
		{"arguments that are null", "/amount", `null`, refused},
		{"arguments that are cut off", "/amount", `{"amount":1`, refused},
		{"a string that is cut off", "/amount", `{"amount":"1`, refused},
		{"a string whose quote is escaped", "/amount", `{"amount":"1\"}`, refused},
		{"arguments followed by others", "/amount", `{"amount":1}{"amount":100}`, refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := compile(t, policy.Ruleset{Costs: []policy.Cost{{Tools: []string{"*"}, HasFromArgument: true, FromArgument: tt.at}}})
			d := e.Decide(call("pay/a", tt.args), free())
			if tt.want == refused {
				if d.Verdict != policy.Deny || d.Policy != "cost" || d.Cost != 0 {
					t.Errorf("%+v", d)
				}
				if strings.HasPrefix(tt.args, "{") { // a result may be of any kind
					if m, err := policy.Amount(json.RawMessage(tt.args), tt.at); err == nil {
						t.Errorf("Amount reads %d where Decide refuses", m)
					}
				}
				return
			}
			if d.Verdict != policy.Allow || d.Cost != tt.want || d.CostFrom != "" {
				t.Errorf("%+v, want the cost %d", d, tt.want)
			}
			for _, h := range d.Holds {
				if h.Money && h.Amount != int64(tt.want) {
					t.Errorf("holds %+v", h)
				}
			}
			if m, err := policy.Amount(json.RawMessage(tt.args), tt.at); err != nil || m != tt.want {
				t.Errorf("Amount: %d, %v", m, err)
			}
		})
	}
}

func TestAmount(t *testing.T) {
	tests := []struct {
		name, at, document string
		want               policy.Micros // -1 for an error
	}{
		{"a document that is an amount", "", ` 1.5 `, 1_500_000},
		{"a document that is a string", "", `"1.5"`, 1_500_000},
		{"a document that is a list", "/0", `["2"]`, 2_000_000},
		{"the cost in a result", "/_meta/cost_usd", `{"content":[],"_meta":{"cost_usd":0.05}}`, 50_000},
		{"twins beside the way do not matter", "/_meta/cost_usd", `{"x":{"a":1,"A":2},"_meta":{"cost_usd":0.05}}`, 50_000},
		{"twins on the way do", "/_meta/cost_usd", `{"_meta":{"cost_usd":0.05,"Cost_usd":0}}`, -1},
		{"a bad pointer", "_meta", `{"_meta":1}`, -1},
		{"a bad escape", "/~2", `{"~2":1}`, -1},
		{"no document", "/a", ``, -1},
		{"a bad document", "/a", `{"a":1}}`, -1},
		{"a bad document behind the amount", "/a", `{"a":1,"b":}`, -1},
		{"too deep a document", "/a", `{"a":1,"b":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := policy.Amount(json.RawMessage(tt.document), tt.at)
			if (err != nil) != (tt.want < 0) || err == nil && m != tt.want {
				t.Errorf("%d, %v; want %d", m, err, tt.want)
			}
		})
	}
}

func TestCostRules(t *testing.T) {
	list := []policy.Cost{
		{Tools: []string{"search/*"}, USD: 4000},
		{Tools: []string{"search/free", "llm/free"}, USD: 0},
		{Tools: []string{"llm/*"}, USD: 50_000, FromResult: "/_meta/cost_usd"},
	}
	tests := []struct {
		name, tool string
		want       policy.Micros
		from       string
		money      int // holds on money
	}{
		{"the first matching rule counts", "search/free", 4000, "", 2},
		{"a rule of zero costs nothing but is held", "llm/free", 0, "", 2},
		{"with from_result the ceiling is held", "llm/big", 50_000, "/_meta/cost_usd", 2},
		{"no rule, no cost", "files/read", 0, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, policy.Ruleset{Costs: list}).Decide(call(tt.tool, ""), free())
			money := 0
			for _, h := range d.Holds {
				if h.Money {
					money++
				}
			}
			if d.Verdict != policy.Allow || d.Cost != tt.want || d.CostFrom != tt.from || money != tt.money {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestSpendLimitsOfSessionAndPolicy(t *testing.T) {
	const big = math.MaxInt64
	tests := []struct {
		name         string
		session      *policy.Micros
		rule         *policy.Micros
		used         int64
		cost         string
		want, byRule string
	}{
		{"nil and no rule mean no limit", nil, nil, big, "1000000000", "allow", ""},
		{"a session limit of zero means zero", dollars(0), nil, 0, "0.000001", "deny", "session"},
		{"a session limit of zero lets a call of nothing pass", dollars(0), nil, 0, "0", "allow", ""},
		{"a session limit that is used up lets a call of nothing pass", dollars(5), nil, 9, "0", "allow", ""},
		{"a session limit may be used to the last micro", dollars(3_000_000), nil, 2_000_000, "1", "allow", ""},
		{"a session limit is not overshot by a micro", dollars(3_000_000), nil, 2_000_001, "1", "deny", "session"},
		{"the lower limit holds: the session's", dollars(1_000_000), dollars(2_000_000), 0, "1.5", "deny", "session"},
		{"the lower limit holds: the policy's", dollars(2_000_000), dollars(1_000_000), 0, "1.5", "deny", "limit"},
		{"of both the policy's is reported", dollars(1), dollars(2), 0, "1.5", "deny", "limit"},
		{"a negative session limit refuses what costs", dollars(-1), nil, 0, "0.000001", "deny", "session"},
		{"used near the end of int64 does not wrap", dollars(3_000_000), dollars(3_000_000), big, "1", "deny", "limit"},
		{"used one before the end of int64 does not wrap", dollars(3_000_000), dollars(3_000_000), big - 1, "1000000000", "deny", "limit"},
		{"a limit at the end of int64 is exact", dollars(big), nil, big - 1_000_000, "1", "allow", ""},
		{"a limit at the end of int64 is not overshot", dollars(big), nil, big - 999_999, "1", "deny", "session"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs := policy.Ruleset{Costs: costs()}
			if tt.rule != nil {
				rs.Policies = []policy.Rule{{Type: policy.TypeSpendLimit, ID: "limit", MaxUSD: *tt.rule}}
			}
			e := compile(t, rs)
			c, s := call("pay/a", `{"amount":`+tt.cost+`}`), free()
			s.Session.SpendLimit = tt.session
			s.Used = map[policy.CounterKey]policy.Counter{}
			for _, k := range e.Reads(c) {
				s.Used[k] = policy.Counter{Value: tt.used}
			}
			if d := e.Decide(c, s); d.Verdict.String() != tt.want || d.Rule != tt.byRule {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestARateCounterAtTheEndOfInt64StillRefuses(t *testing.T) {
	e := compile(t, rules(policy.Rule{Type: policy.TypeRateLimit, MaxCalls: math.MaxInt64, Window: math.MaxInt64}))
	c, s := call("db/a", ""), free()
	s.Used = map[policy.CounterKey]policy.Counter{}
	for _, k := range e.Reads(c) {
		s.Used[k] = policy.Counter{Start: noon, Value: math.MaxInt64}
	}
	if d := e.Decide(c, s); d.Verdict != policy.Deny || !d.RetryAt.After(noon) {
		t.Errorf("%+v", d)
	}
}
