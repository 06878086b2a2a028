package config

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/haldir-mcp/haldir/internal/files"
)

// reference matches ${…}; $${ stands for a literal ${.
var reference = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\$?\$\{([^}]*)\}?`) })

// CheckReferences reports the first reference in text that cannot be resolved
// by anybody.
func CheckReferences(text string) error {
	_, err := expand(text, func(_, _ string) (string, error) { return "", nil })
	return err
}

// expand replaces the references in text by their values.
func expand(text string, value func(kind, name string) (string, error)) (string, error) {
	var first error
	out := reference().ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasPrefix(m, "$${") {
			return m[1:]
		}
		kind, name, err := parseReference(m)
		if err == nil {
			m, err = value(kind, name)
		}
		if first == nil {
			first = err
		}
		return m
	})
	return out, first
}

// parseReference takes ${kind:name} apart.
func parseReference(text string) (kind, name string, err error) {
	inner, closed := strings.CutSuffix(text[len("${"):], "}")
	kind, name, named := strings.Cut(inner, ":")
	switch {
	case strings.Contains(inner, "${"):
		err = fmt.Errorf("the reference %q stands around another one; refer to one variable that holds the whole", text)
	case !closed:
		err = fmt.Errorf("the reference %q has no closing brace", text)
	case kind == "root" && named:
		err = fmt.Errorf("the reference ${%s} takes no name; write ${root}", inner)
	case kind == "root":
	case kind != "env" && kind != "file" && kind != "keyring":
		err = fmt.Errorf("unknown reference ${%s}; known are ${env:NAME}, ${file:PATH}, ${keyring:NAME} and ${root}", inner)
	case name == "":
		err = fmt.Errorf("the reference ${%s:} names nothing", kind)
	case kind == "env" && !variableName().MatchString(name):
		err = fmt.Errorf("the reference ${%s} names no variable: a name has letters, digits and _ only", inner)
	case kind == "keyring" && strings.Contains(name, "/"):
		err = fmt.Errorf("the reference ${%s} names no secret of yours: haldir's own have a slash", inner)
	}
	return kind, name, err
}

// Resolver replaces references when a value is used. What it returned is a
// secret: it must not reach a log, the audit or a message.
type Resolver struct {
	Root    string                       // the directory haldir was started in
	Env     func(string) (string, bool)  // usually os.LookupEnv
	File    func(string) ([]byte, error) // usually files.Read
	Keyring func(string) (string, error) // reads a stored secret; nil: there are none
	Seen    func(secret string)          // told every value that came from outside the config; may be nil
}

// NewResolver reads the process's environment and files, and secrets by keyring.
func NewResolver(root string, keyring func(string) (string, error), seen func(string)) *Resolver {
	return &Resolver{Root: root, Env: os.LookupEnv, File: files.Read, Keyring: keyring, Seen: seen}
}

// ReferenceError says that a reference leads to nothing.
type ReferenceError struct {
	Kind string // env, file or keyring
	Name string // the variable, the path or the secret
	err  error
}

func (e *ReferenceError) Error() string { return e.err.Error() }

// Unwrap is why.
func (e *ReferenceError) Unwrap() error { return e.err }

func missing(kind, name, format string, args ...any) error {
	return &ReferenceError{kind, name, fmt.Errorf(format, args...)}
}

// Resolve returns text with its references replaced. The error names the one
// that is missing, never a value.
func (r *Resolver) Resolve(text string) (string, error) {
	return expand(text, func(kind, name string) (string, error) {
		switch kind {
		case "root":
			return r.Root, nil
		case "env":
			v, ok := r.Env(name)
			if !ok {
				return "", missing(kind, name, "the variable %s, referred to by ${env:%s}, is not set", name, name)
			}
			return r.Secret(v), nil
		case "file":
			b, err := r.File(name)
			if err != nil {
				if pe, ok := errors.AsType[*os.PathError](err); ok {
					err = pe.Err
				}
				return "", missing(kind, name, "the file of ${file:%s} cannot be read: %w", name, err)
			}
			return r.Secret(strings.TrimRight(string(b), "\r\n")), nil
		case "keyring":
			if r.Keyring == nil {
				return "", missing(kind, name, "there are no stored secrets here for ${keyring:%s}", name)
			}
			v, err := r.Keyring(name)
			if err != nil {
				return "", missing(kind, name, "the secret of ${keyring:%s}: %w", name, err)
			}
			return r.Secret(v), nil
		}
		panic("haldir: config: a reference of kind " + kind) // a mistake in parseReference
	})
}

// URL resolves an upstream's url and checks what has come of it. The error shows
// no value.
func (r *Resolver) URL(text string) (string, error) {
	u, err := r.Resolve(text)
	if err != nil {
		return "", err
	}
	if err := checkURL(u); err != nil {
		return "", fmt.Errorf("the url %s, once its references are resolved, %w", redact(text), err)
	}
	return u, nil
}

// Header resolves the value of an HTTP header, or a part of it such as a token,
// and checks what has come of it. The error shows no value.
func (r *Resolver) Header(text string) (string, error) {
	v, err := r.Resolve(text)
	if err != nil {
		return "", err
	}
	if err := checkHeader(v); err != nil {
		return "", err
	}
	return v, nil
}

// Secret notes a value that must not be shown, and returns it. Of one of several lines,
// such as a private key or a file of JSON, so is each part that looks like key material: a
// server may say them one by one.
func (r *Resolver) Secret(v string) string {
	if r.Seen == nil {
		return v
	}
	parts := []string{v}
	if strings.ContainsFunc(v, unicode.IsControl) {
		for _, m := range material().FindAllString(v, maxParts) {
			if upper().MatchString(m) && lower().MatchString(m) && digit().MatchString(m) {
				parts = append(parts, m)
			}
		}
	}
	for _, p := range parts {
		if len(p) >= 8 { // shorter ones would redact ordinary words
			r.Seen(p)
		}
	}
	return v
}

// material is text without a break that may be a key, if it is mixed: words and names
// are not.
var (
	material = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[A-Za-z0-9+/=_-]{20,}`) })
	upper    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[A-Z]`) })
	lower    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[a-z]`) })
	digit    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9]`) })
)

// maxParts bounds the parts of a value that are secrets by themselves; a private key of
// RSA has 50.
const maxParts = 150
