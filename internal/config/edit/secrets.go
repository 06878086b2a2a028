package edit

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/haldir-mcp/haldir/internal/config"
)

var (
	// secretName is in the names of headers, variables and parameters that hold secrets.
	secretName = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)(pass(word|wd|phrase)?|secret|token|api[-_]?key|authorization|(^|[^a-z])(auth|pat|key)([^a-z]|$)|credential|private[-_]?key|access[-_]?key|cookie|signature)`)
	})
	// secretValue is how tokens of known services begin, what else is one by its look, and an
	// address with a password in it.
	secretValue = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(^|[^A-Za-z0-9])(sk-[A-Za-z0-9_-]{8,}|(sk|rk|pk)_(live|test)_\w+|gh[opsur]_\w{16,}|github_pat_\w+|glpat-[\w-]{10,}|xox[abeprs]-[\w-]+|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|eyJ[\w-]+\.[\w-]+\.|hld_\w+|npm_\w{20,}|-----BEGIN)|://[^/\s:@]*:[^/\s@]+@`)
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
	return secretName().MatchString(name) && len(value) > 3 && !limit
}

// exposed tells of values of an upstream that look like secrets in the clear. It does not
// repeat them.
func exposed(u config.Upstream) (notes []string) {
	note := func(what, name string) {
		notes = append(notes, fmt.Sprintf("%s looks like a secret in the clear, which everybody can read who can read the file: store it with `haldir secret set %s` and write ${keyring:%s} in its place", what, name, name))
	}
	for _, h := range u.Headers {
		if LooksSecret(h.Name, h.Value) {
			note("the header "+h.Name, u.Name)
		}
	}
	for _, e := range u.Env {
		if name, value, _ := strings.Cut(e, "="); LooksSecret(name, value) {
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
	if _, query, ok := strings.Cut(u.URL, "?"); ok {
		for pair := range strings.SplitSeq(query, "&") {
			if name, value, _ := strings.Cut(pair, "="); LooksSecret(name, value) {
				note("the parameter "+name+" of url", u.Name)
			}
		}
	}
	return notes
}
