package edit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/haldir-mcp/haldir/internal/config"
)

var (
	// secretName is in the names of headers, variables and parameters that hold secrets.
	secretName = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|secret|token|authorization|(^|[^a-z])(auth|pat|key)([^a-z]|$)|credential|(api|private|access|account|shared|master|signing|encryption)[-_]?key|cookie|signature)`)
	})
	// secretValue is how tokens of known services begin, what else is one by its look, and an
	// address that is one, or with a password in it.
	secretValue = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(^|[^A-Za-z0-9])(sk-[A-Za-z0-9_-]{8,}|(sk|rk|pk)_(live|test)_\w+|gh[opsur]_\w{16,}|github_pat_\w+|glpat-[\w-]{10,}|xox[abeprs]-[\w-]+|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|eyJ[\w-]+\.[\w-]+\.|hld_\w+|npm_\w{20,}|-----BEGIN` +
			`|ntn_[A-Za-z0-9]{12,}|(lin_api|lin_oauth|hf|sbp|gsk|figd|apify_api|dop_v1|shp(at|ca|pa|ss))_[A-Za-z0-9]{16,}|(tvly|pplx)-[\w-]{8,}|(?i:bearer +[a-z._~+/=-]*[0-9][\w.~+/=-]{6,}))` +
			`|://[^/\s:@]*:[^/\s@]+@|://(hooks\.slack\.com/\w+/|discord(app)?\.com/api/webhooks/)\w`)
	})

	// counted are names of limits, whose values are numbers.
	number  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]+)?$`) })
	counted = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)([-_]tokens|(^|[-_])max[-_]?tokens?)$`) })
)

// LooksSecret reports whether the value of a header, a variable or a parameter of that name
// looks like a secret in the clear. A name of "" says nothing.
func LooksSecret(name, value string) bool {
	if strings.Contains(strings.ReplaceAll(value, "$${", ""), "${") {
		return false
	}
	if secretValue().MatchString(value) {
		return true
	}
	limit := number().MatchString(value) && counted().MatchString(name)
	return (secretName().MatchString(name) || custom(name, value)) && len(value) > 3 && !limit
}

// custom reports whether a header that somebody has made up has a key for its value: one word
// of letters and digits.
func custom(name, value string) bool {
	return len(name) > 2 && strings.EqualFold(name[:2], "x-") && len(value) >= 8 && !strings.ContainsAny(value, " \t,;") &&
		strings.ContainsAny(value, "0123456789") && strings.ContainsFunc(value, unicode.IsLetter)
}

var uuid = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
})

// random reports whether a part of an address looks as if nobody had thought of it: it goes
// between letters and digits, or small and capital letters, more often than names do.
func random(part string) bool {
	if uuid().MatchString(part) {
		return true
	}
	digits, cases := 0, 0
	for i := 1; i < len(part); i++ {
		switch a, b := kindOf(part[i-1]), kindOf(part[i]); {
		case a == b || a == 0 || b == 0:
		case a == '0' || b == '0':
			digits++
		default:
			cases++
		}
	}
	return len(part) >= 16 && (digits >= 4 || 2*(digits+cases) >= len(part))
}

// kindOf is 0 for what is neither a letter nor a digit.
func kindOf(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return '0'
	case 'a' <= c && c <= 'z':
		return 'a'
	case 'A' <= c && c <= 'Z':
		return 'A'
	}
	return 0
}

// holds reports whether a value, or a part of it, looks like a secret.
func holds(name, value string) bool {
	list := []string{value}
	return LooksSecret(name, value) || slices.ContainsFunc(Arguments(list), func(a Argument) bool { return LooksSecret(a.Name, a.In(list)) })
}

// exposed tells of values of an upstream that look like secrets in the clear. It does not
// repeat them.
func exposed(u config.Upstream) (notes []string) {
	note := func(what, name string) {
		notes = append(notes, fmt.Sprintf("%s looks like a secret in the clear, which everybody can read who can read the file: store it with `haldir secret set %s` and write ${keyring:%s} in its place", what, name, name))
	}
	for _, h := range u.Headers {
		if holds(h.Name, h.Value) {
			note("the header "+h.Name, u.Name)
		}
	}
	for _, e := range u.Env {
		if name, value, _ := strings.Cut(e, "="); holds(name, value) {
			note("the variable "+name, u.Name)
		}
	}
	if LooksSecret("token", u.Bearer) {
		note("auth.token", u.Name)
	}
	if u.OAuth != nil && LooksSecret("secret", u.OAuth.ClientSecret) {
		note("auth.client_secret", u.Name)
	}
	told := -1
	for _, a := range Arguments(u.Args) {
		if LooksSecret(a.Name, a.In(u.Args)) && a.At != told {
			told = a.At
			notes = append(notes, fmt.Sprintf("args[%d] looks like a secret, which other users of this machine can see while the program runs: give it by env, as in env: [\"TOKEN=${keyring:%s}\"], and store it with `haldir secret set %s`", a.At, u.Name, u.Name))
		}
	}
	head, query, ok := strings.Cut(u.URL, "?")
	if holds("", head) {
		note("a part of url", u.Name)
	}
	if ok {
		for pair := range strings.SplitSeq(query, "&") {
			if name, value, _ := strings.Cut(pair, "="); LooksSecret(name, value) || random(value) {
				note("the parameter "+name+" of url", u.Name)
			}
		}
	}
	return notes
}
