package config

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// reference matches ${…}; $${ stands for a literal ${.
var reference = regexp.MustCompile(`\$?\$\{([^}]*)\}?`)

// CheckReferences reports the first reference in text that cannot be resolved
// by anybody.
func CheckReferences(text string) error {
	_, err := expand(text, func(kind, name string) (string, error) {
		switch kind {
		case "env", "file":
			if name == "" {
				return "", fmt.Errorf("the reference ${%s:} names nothing", kind)
			}
			return "", nil
		case "root":
			return "", nil
		}
		return "", fmt.Errorf("unknown reference ${%s}; known are ${env:NAME}, ${file:PATH} and ${root}", joinRef(kind, name))
	})
	return err
}

func joinRef(kind, name string) string {
	if name == "" {
		return kind
	}
	return kind + ":" + name
}

func expand(text string, value func(kind, name string) (string, error)) (string, error) {
	var first error
	out := reference.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasPrefix(m, "$${") {
			return m[1:]
		}
		if !strings.HasSuffix(m, "}") {
			if first == nil {
				first = fmt.Errorf("the reference %q has no closing brace", m)
			}
			return m
		}
		kind, name, _ := strings.Cut(m[2:len(m)-1], ":")
		v, err := value(kind, name)
		if err != nil && first == nil {
			first = err
		}
		return v
	})
	return out, first
}

// Resolver replaces references when a value is used. What it returned is a
// secret: it must not reach a log, the audit or a message.
type Resolver struct {
	Root string                       // the directory haldir was started in
	Env  func(string) (string, bool)  // usually os.LookupEnv
	File func(string) ([]byte, error) // usually os.ReadFile
	Seen func(secret string)          // told every value that came from outside the config; may be nil
}

// NewResolver reads the process's environment and files.
func NewResolver(root string, seen func(string)) *Resolver {
	return &Resolver{Root: root, Env: os.LookupEnv, File: os.ReadFile, Seen: seen}
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
				return "", fmt.Errorf("the variable %s, referred to by ${env:%s}, is not set", name, name)
			}
			return r.Secret(v), nil
		case "file":
			b, err := r.File(name)
			if err != nil {
				if pe, ok := errors.AsType[*os.PathError](err); ok {
					err = pe.Err
				}
				return "", fmt.Errorf("the file of ${file:%s} cannot be read: %w", name, err)
			}
			return r.Secret(strings.TrimRight(string(b), "\r\n")), nil
		}
		return "", fmt.Errorf("unknown reference ${%s}", joinRef(kind, name))
	})
}

// Secret notes a value that must not be shown, and returns it.
func (r *Resolver) Secret(v string) string {
	if r.Seen != nil && len(v) >= 8 { // shorter ones would redact ordinary words
		r.Seen(v)
	}
	return v
}
