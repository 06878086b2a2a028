package edit

import (
	"regexp"
	"strings"
	"sync"
)

// Argument is a value among the arguments of a program, args[At][Start:End]. Its name is that
// of the flag, variable, header, parameter or member that it is the value of, if such a name
// says that a value is secret, else "".
type Argument struct {
	At, Start, End int
	Name           string
}

// In is the value.
func (a Argument) In(args []string) string { return args[a.At][a.Start:a.End] }

var (
	argFlag = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^--?([A-Za-z][\w.-]*)$`) })
	// argNext is a flag where a value was awaited. A secret may begin with one dash.
	argNext = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(--[A-Za-z]|-[A-Za-z]$)`) })
	// argPair is --name=value and NAME=value.
	argPair = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:--?)?([A-Za-z_][\w.-]*)=`) })
	// argHeader is "Name: value", which an address is not.
	argHeader = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([A-Za-z][\w-]*):[ \t]*(?:[^/\s]|/[^/])`) })
	argMember = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"([^"\\]+)"\s*:\s*"((?:[^"\\]|\\.)*)"`) })
	// argWord is a word of a command line in one argument, as in sh -c.
	argWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:"[^"]*"|'[^']*'|[^\s"']|["'])+`) })

	// about are names that say where a secret is, or whether there is one.
	about = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)([-_](file|path|dir|env|var|name|ur[il]|type|mode)|tokenizer)$|^(no|enable|disable|skip|require)[-_]`)
	})
)

// Arguments takes the arguments of a program apart into values, none of which overlap.
func Arguments(args []string) (out []Argument) {
	named := ""
	for at, text := range args {
		name := named
		if named = secretFlag(name, text); named != "" {
			continue
		}
		if argNext().MatchString(text) {
			name = ""
		}
		s := &argument{at: at, text: text}
		s.value(name, 0, len(text))
		out = append(out, s.found...)
	}
	return out
}

// secretFlag is the name of a flag whose value stands behind it and is a secret; "" for none.
// awaited is that of the flag before it.
func secretFlag(awaited, text string) string {
	if awaited != "" && !argNext().MatchString(text) {
		return ""
	}
	if m := argFlag().FindStringSubmatch(text); m != nil && tells(m[1]) {
		return m[1]
	}
	return ""
}

// tells reports whether a name says that its value is a secret.
func tells(name string) bool { return secretName().MatchString(name) && !about().MatchString(name) }

// argument is one that is taken apart.
type argument struct {
	at    int
	text  string
	found []Argument
}

func (s *argument) value(name string, from, to int) {
	if q := s.text[from:to]; len(q) > 1 && strings.ContainsAny(q[:1], `"'`) && strings.Index(q[1:], q[:1]) == len(q)-2 {
		from, to = from+1, to-1 // quotes of a shell
	}
	text := s.text[from:to]
	switch pair, header := argPair().FindStringSubmatchIndex(text), argHeader().FindStringSubmatchIndex(text); {
	case tells(name):
		s.add(name, from, to)
	case strings.HasPrefix(text, "{"):
		s.members(from, to)
	case pair != nil:
		s.value(text[pair[2]:pair[3]], from+pair[1], to)
	case header != nil:
		at := header[3] + 1
		at += len(text[at:]) - len(strings.TrimLeft(text[at:], " \t"))
		s.value(text[header[2]:header[3]], from+at, to)
	case strings.ContainsAny(text, " \t\r\n"):
		s.words(from, to)
	case strings.Contains(text, "://") && strings.Contains(text, "?"):
		s.address(from, to)
	default:
		s.add("", from, to)
	}
}

func (s *argument) add(name string, from, to int) {
	if from < to {
		s.found = append(s.found, Argument{s.at, from, to, name})
	}
}

// members takes JSON apart. Without names that tell it is one value.
func (s *argument) members(from, to int) {
	text, before := s.text[from:to], len(s.found)
	for _, m := range argMember().FindAllStringSubmatchIndex(text, -1) {
		if tells(text[m[2]:m[3]]) || secretValue().MatchString(text[m[4]:m[5]]) {
			s.add(text[m[2]:m[3]], from+m[4], from+m[5])
		}
	}
	if len(s.found) == before {
		s.add("", from, to)
	}
}

func (s *argument) words(from, to int) {
	text, named := s.text[from:to], ""
	for _, m := range argWord().FindAllStringIndex(text, -1) {
		name := named
		if named = secretFlag(name, text[m[0]:m[1]]); named != "" {
			continue
		}
		if m[0] == 0 && m[1] == len(text) { // quotes that do not match hold it together
			s.add("", from, to)
			return
		}
		if argNext().MatchString(text[m[0]:m[1]]) {
			name = ""
		}
		s.value(name, from+m[0], from+m[1])
	}
}

// address takes the parameters of a URL apart. One with a password in it is one value.
func (s *argument) address(from, to int) {
	head, query, _ := strings.Cut(s.text[from:to], "?")
	if secretValue().MatchString(head) {
		s.add("", from, to)
		return
	}
	query, _, _ = strings.Cut(query, "#")
	at := from + len(head) + 1
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if !tells(name) {
			name = ""
		}
		s.add(name, at+len(pair)-len(value), at+len(pair))
		at += len(pair) + 1
	}
}
