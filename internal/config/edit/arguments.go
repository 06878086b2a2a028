package edit

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Argument is a value among the arguments of a program, args[At][Start:End]. Its name is that
// of the flag, variable, header, parameter or member that it is the value of, if such a name
// says that a value is secret; Unnamed for a part of an address that looks like one; else "".
type Argument struct {
	At, Start, End int
	Name           string
}

// Unnamed is the name of a secret that has none.
const Unnamed = "secret"

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
	// argText is a text in JSON, and whether it is the name of a member.
	argText = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"((?:[^"\\]|\\.)*)"(\s*:)?`) })
	// argField is one of name=value;name=value, as databases are told, and argFieldName its name.
	argField     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:"[^"]*"|'[^']*'|[^;"']|["'])+`) })
	argFieldName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\s*([A-Za-z][\w .-]*?)\s*=\s*`) })
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
	case tells(name) || custom(name, text):
		s.add(name, from, to)
	case strings.HasPrefix(text, "{") || strings.HasPrefix(text, "["):
		s.members(from, to)
	case strings.Contains(text, ";") && argFieldName().MatchString(text):
		s.fields(from, to)
	case pair != nil:
		s.value(text[pair[2]:pair[3]], from+pair[1], to)
	case header != nil:
		at := header[3] + 1
		at += len(text[at:]) - len(strings.TrimLeft(text[at:], " \t"))
		s.value(text[header[2]:header[3]], from+at, to)
	case strings.ContainsAny(text, " \t\r\n"):
		s.words(from, to)
	case strings.Contains(text, "://"):
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

// members takes JSON apart. What stands in a list has the name of the list. Without texts it is
// one value.
func (s *argument) members(from, to int) {
	text, before, name := s.text[from:to], len(s.found), ""
	for _, m := range argText().FindAllStringSubmatchIndex(text, -1) {
		if m[4] >= 0 {
			name = text[m[2]:m[3]]
			continue
		}
		s.value(name, from+m[2], from+m[3])
	}
	if len(s.found) == before {
		s.add("", from, to)
	}
}

// fields takes name=value;name=value apart.
func (s *argument) fields(from, to int) {
	text := s.text[from:to]
	for _, m := range argField().FindAllStringIndex(text, -1) {
		name, at := "", m[0]
		if n := argFieldName().FindStringSubmatchIndex(text[m[0]:m[1]]); n != nil {
			name, at = text[m[0]+n[2]:m[0]+n[3]], m[0]+n[1]
		}
		if strings.EqualFold(name, "pwd") { // a directory elsewhere
			name = "password"
		}
		s.value(name, from+at, from+m[1])
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

// address takes the path, the parameters and the fragment of a URL apart. One with a password in
// it is one value, and so is one of a database.
func (s *argument) address(from, to int) {
	text, fragment, _ := strings.Cut(s.text[from:to], "#")
	head, query, asks := strings.Cut(text, "?")
	scheme, rest, _ := strings.Cut(head, "://")
	web := slices.Contains([]string{"http", "https", "ws", "wss"}, strings.ToLower(scheme))
	if secretValue().MatchString(head) || !web && !asks {
		s.add("", from, to)
		return
	}
	if host, path, ok := strings.Cut(rest, "/"); ok && web {
		s.path(path, from+len(scheme)+len("://")+len(host)+1)
	}
	s.parameters(query, from+len(head)+len("?"))
	s.value("", to-len(fragment), to)
}

// path takes the path of a URL apart, which begins at an offset.
func (s *argument) path(path string, at int) {
	for part := range strings.SplitSeq(path, "/") {
		s.part("", part, at)
		at += len(part) + 1
	}
}

// parameters takes the parameters of a URL apart, which begin at an offset.
func (s *argument) parameters(query string, at int) {
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		s.part(name, value, at+len(pair)-len(value))
		at += len(pair) + 1
	}
}

// part is one of a URL.
func (s *argument) part(name, value string, at int) {
	switch {
	case random(value):
		name = Unnamed
	case !tells(name):
		name = ""
	}
	s.add(name, at, at+len(value))
}
