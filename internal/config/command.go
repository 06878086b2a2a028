package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// program warns of a command that is a program with its arguments, or with variables before it,
// as a shell takes them. Nothing is wrong with a path that has spaces; whether it is there where
// haldir will run cannot be told, so what may be one is not warned of.
func (c *checker) program(path string, d *upstreamDoc) {
	command := strings.TrimSpace(d.Command)
	if there(command, d.Cwd) {
		return
	}
	variables, rest := assigned(command)
	name, args := divide(rest, d.Cwd)
	if len(args)+len(variables) == 0 {
		return
	}
	shown := shownArgs(name, args)
	if len(d.Args) > 0 && !slices.Contains(shown, "…") {
		shown = append(shown, "…")
	}
	what, better := "arguments", yamlWord(name)
	if name == "" || strings.Contains(name, "=") { // a value may be in it
		better = "…"
	}
	if len(shown) > 0 {
		better += ", args: [" + strings.Join(shown, ", ") + "]"
	}
	key := "args"
	if len(variables) > 0 {
		what, key = "variables", "env"
		better += ", env: {" + strings.Join(variables, ": …, ") + ": …}"
	}
	c.warn(path, "there are %s in it, which belong in %s; write command: %s", what, key, better)
}

// assignment is a word by which a shell sets a variable for the program behind it.
var assignment = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)=`) })

// assigned takes the variables off that stand before a program. Where a value is quoted, or
// seems to follow a space, nobody knows where it ends, and no rest is returned.
func assigned(command string) (variables []string, rest string) {
	if !strings.ContainsAny(command, " \t") {
		return nil, command
	}
	words := strings.Fields(command)
	for i, w := range words {
		m := assignment().FindStringSubmatch(w)
		if m == nil && i == 0 {
			break // a path may have several spaces
		}
		if m == nil {
			return variables, strings.Join(words[i:], " ")
		}
		if variables = append(variables, m[1]); w == m[0] || strings.ContainsAny(w, "\"'`\\$") {
			return variables, ""
		}
	}
	if len(variables) > 0 {
		return variables, ""
	}
	return nil, command
}

// divide returns the program of a command and the arguments that stand behind it, none if it
// is all one path.
func divide(command, cwd string) (name string, args []string) {
	words := strings.Fields(command)
	if len(words) < 2 || there(command, cwd) {
		return command, nil
	}
	if !strings.ContainsAny(words[0], `/\$`) { // looked for on PATH
		return words[0], words[1:]
	}
	for i := len(words) - 1; i > 0; i-- {
		if name = strings.Join(words[:i], " "); there(name, cwd) {
			return name, words[i:]
		}
	}
	if i := slices.IndexFunc(words, func(w string) bool { return len(w) > 1 && w[0] == '-' }); i > 0 {
		return strings.Join(words[:i], " "), words[i:]
	}
	return command, nil
}

// there reports whether a command is a program on this machine.
func there(command, cwd string) bool {
	if strings.ContainsAny(command, `/\`) && !filepath.IsAbs(command) {
		command = filepath.Join(cwd, command)
		info, err := os.Stat(command)
		return err == nil && info.Mode().IsRegular()
	}
	_, err := exec.LookPath(command)
	return err == nil
}

// quietFlags are flags whose value, if they have one, is no secret.
var quietFlags = []string{"-y", "--yes", "-m", "--stdio"}

// plainWord is a text that is what it is in YAML, and no URL or setting, which may hold a secret.
var plainWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^@?[A-Za-z./_-][A-Za-z0-9./_@-]*$`) })

// runners are programs whose first argument that is no flag is a package or a file.
var runners = []string{"npx", "bunx", "uvx", "node", "bun", "deno", "python", "python3", "pipx"}

// shownArgs is the arguments of a program in YAML up to the first that may be secret, such as the
// value of a flag, which may be part of it (-psecret), or a word that is not known to name what is run.
func shownArgs(name string, args []string) (shown []string) {
	runs := slices.Contains(runners, strings.TrimSuffix(filepath.Base(name), ".exe"))
	for i, a := range args {
		flag := strings.HasPrefix(a, "-")
		if !plainWord().MatchString(a) || !runs && !slices.Contains(quietFlags, a) || i > 0 && strings.HasPrefix(args[i-1], "-") && !slices.Contains(quietFlags, args[i-1]) {
			return append(shown, "…")
		}
		runs = runs && flag
		shown = append(shown, yamlWord(a))
	}
	return shown
}

// yamlWord is a text as it can stand in a list in brackets.
func yamlWord(s string) string {
	if plainWord().MatchString(s) && s[0] != '@' {
		return s
	}
	return strconv.Quote(s)
}
