package policy

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// maxMicros bounds one amount to a billion dollars, so that sums of counters
// stay far from the end of int64.
const maxMicros = 1_000_000_000 * int64(USD)

// ParseUSD reads an amount of dollars in the grammar of a JSON number. A
// fraction of a micro-dollar is rounded up. NaN, infinities, negative amounts
// and amounts above a billion dollars are errors.
func ParseUSD(s string) (Micros, error) {
	if !jsonNumber(s) {
		return 0, fmt.Errorf("%q is no decimal number", clip(s))
	}
	if m, ok := plainUSD(s); ok {
		return m, nil
	}
	// ParseFloat first: it bounds the exponent before exact arithmetic starts.
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f > 1e15 {
		return 0, fmt.Errorf("the amount %s is too large", clip(s))
	}
	if f < 0 {
		return 0, fmt.Errorf("the amount %s is negative", clip(s))
	}
	if len(s) > 64 {
		return 0, errors.New("the amount has more than 64 characters")
	}
	if _, exp, ok := strings.Cut(strings.ToLower(s), "e"); ok {
		if n, err := strconv.Atoi(exp); err != nil || n < -400 || n > 400 {
			return 0, fmt.Errorf("the amount %s has an absurd exponent", clip(s))
		}
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, fmt.Errorf("%q is no decimal number", clip(s))
	}
	if r.Sign() < 0 {
		return 0, fmt.Errorf("the amount %s is negative", clip(s))
	}
	r.Mul(r, new(big.Rat).SetInt64(int64(USD)))
	q, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	if !q.IsInt64() || q.Int64() > maxMicros {
		return 0, fmt.Errorf("the amount %s is too large", clip(s))
	}
	return Micros(q.Int64()), nil
}

// plainUSD reads the amounts people write: at most nine digits, a point, at
// most six decimals.
func plainUSD(s string) (Micros, bool) {
	whole, frac, _ := strings.Cut(s, ".")
	if len(whole) > 9 || len(frac) > 6 {
		return 0, false
	}
	var m Micros
	for _, c := range []byte(whole) {
		if c < '0' || c > '9' {
			return 0, false
		}
		m = m*10 + Micros(c-'0')
	}
	for i := range 6 {
		m *= 10
		if i < len(frac) {
			if frac[i] < '0' || frac[i] > '9' {
				return 0, false
			}
			m += Micros(frac[i] - '0')
		}
	}
	return m, true
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// jsonNumber reports whether s matches the grammar of RFC 8259 section 6.
func jsonNumber(s string) bool {
	digits := func() bool {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		s = s[n:]
		return n > 0
	}
	s = strings.TrimPrefix(s, "-")
	if strings.HasPrefix(s, "0") {
		s = s[1:]
	} else if !digits() {
		return false
	}
	if strings.HasPrefix(s, ".") {
		if s = s[1:]; !digits() {
			return false
		}
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		return digits() && s == ""
	}
	return s == ""
}
