package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A loop is the same call again and again, or a tool that fails again and again. Both are
// counted in windows that open with the first, like those of a rate limit: one counter for
// a session, a tool and its arguments, one for a session and a tool.

// repeats names the counters of a loop rule: of calls with these arguments, and of
// failures in a row. Their keys are hashes, so that those of different sessions lie
// scattered, and whoever stores them finds old ones beside any new one.
func (r *rule) repeats(c *Call, k *ready) (same, failed CounterKey) {
	of := func(parts ...string) CounterKey {
		h := sha256.New()
		for _, p := range append([]string{r.counter, c.Session, c.ID()}, parts...) {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
			h.Write([]byte(p))
		}
		return CounterKey{Counter: CounterLoop, Of: hex.EncodeToString(h.Sum(nil)[:16])}
	}
	return of("same", k.digest()), of("failed")
}

// CounterLoop is the counter of all loop rules; Of is a hash.
const CounterLoop = "loop"

// digest identifies the arguments, however their keys are ordered and spaced, and
// however their texts and numbers are spelt.
func (k *ready) digest() string {
	if k.sum == "" {
		text := []byte(k.args.bytes)
		if len(text) == 0 {
			text = []byte("{}")
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var v any
		if d.Decode(&v) == nil {
			if sorted, err := json.Marshal(spelt(v)); err == nil {
				if bytes.Contains(sorted, []byte(`\ufffd`)) || bytes.ContainsRune(sorted, utf8.RuneError) {
					sorted = append(sorted, text...) // characters that are none are all read as the same one
				}
				text = sorted
			}
		}
		sum := sha256.Sum256(text)
		k.sum = string(sum[:])
	}
	return k.sum
}

// spelt writes every number in v one way: 100, 1e2 and 100.0 are the same.
func spelt(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, x := range v {
			v[key] = spelt(x)
		}
	case []any:
		for i, x := range v {
			v[i] = spelt(x)
		}
	case json.Number:
		return speltNumber(string(v))
	}
	return v
}

// speltNumber is the digits that count, and the power of ten that they are to be
// multiplied with. Nothing is calculated: an exponent can be of any size.
func speltNumber(text string) json.Number {
	mantissa, power, _ := strings.Cut(strings.ToLower(text), "e")
	exponent := int64(0)
	if power != "" {
		var err error
		if exponent, err = strconv.ParseInt(power, 10, 32); err != nil {
			return json.Number(text)
		}
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	short := strings.TrimRight(digits, "0")
	exponent += int64(len(digits) - len(short) - len(fraction))
	sign := ""
	if negative {
		sign = "-"
	}
	return json.Number(fmt.Sprintf("%s%se%d", sign, short, exponent))
}

// turns looks whether c goes in circles.
func (r *rule) turns(v *verdicts, c *Call, s State, k *ready) (same, failed Hold) {
	sameKey, failedKey := r.repeats(c, k)
	in := func(key CounterKey) Counter {
		used := s.Used[key]
		if used.Start.IsZero() || !s.Now.Before(used.Start.Add(r.window)) {
			used = Counter{Start: s.Now}
		}
		return used
	}
	f := Finding{Policy: string(r.kind), Rule: r.id, Shadow: r.shadow}
	again, errs := in(sameKey), in(failedKey)
	switch {
	case again.Value >= r.max:
		f.RetryAt = again.Start.Add(r.window)
		f.Reason = fmt.Sprintf("%s has been called %s with these same arguments within %s, which looks like a loop", c.Noun(), times(r.max), Span(r.window))
	case errs.Value >= r.max:
		f.RetryAt = errs.Start.Add(r.window)
		f.Reason = fmt.Sprintf("%s has failed %s in a row within %s, which looks like a loop", c.Noun(), times(r.max), Span(r.window))
	}
	if f.Reason != "" {
		f.Reason += ": stop, and ask the user how to go on; it may be called again at " + stamp(f.RetryAt)
		v.add(rankLoop, f)
	}
	return Hold{Key: sameKey, Start: again.Start, Amount: 1, Window: r.window}, Hold{Key: failedKey, Start: errs.Start, Window: r.window, Streak: true}
}

func times(n int64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
