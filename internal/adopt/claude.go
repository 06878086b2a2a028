package adopt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// guarded are the verbs that are a person's: they say what agents may do, or show or change
// what only a person may. A group stands for all of its verbs: approvals alone is the clerk,
// who approves.
var guarded = []string{
	"approvals", "resume", "reload", "pins accept", "init", "policy add", "policy remove",
	"upstream add", "upstream remove", "upstream login", "upstream logout",
	"secret", "session create", "session renew", "session revoke", "ledger recover", "ledger trust", "ledger reset-clock",
	"ledger compact", "audit compact", "audit ship", "key", "console",
}

// Guarded lists the verbs of haldir that Rules keep from Claude Code's shell; one that has
// verbs below it stands for all of them.
func Guarded() []string { return slices.Clone(guarded) }

// Rules are deny rules for Claude Code that keep its own shell and editor away from haldir's
// files and from the verbs that are a person's. They are a fence and no wall: a program that
// the shell starts is not held by them.
func Rules(h clients.Host, config, stateDir string) (rules []string) {
	state := pattern(h, stateDir) + "/**"
	conf := pattern(h, config)
	rules = append(rules, "Read("+state+")", "Edit("+state+")", "Read("+conf+")", "Edit("+conf+")")
	for _, name := range called(h) {
		for _, verb := range guarded {
			// As it is, by its path, and behind flags.
			rules = append(rules, "Bash("+name+" "+verb+":*)", "Bash(*/"+name+" "+verb+"*)", "Bash(*"+name+" --* "+verb+"*)")
		}
	}
	return rules
}

// called are the names by which the shell may start haldir, as far as a rule can have them.
func called(h clients.Host) []string {
	names := []string{"haldir"}
	if own := filepath.Base(h.Own); plainName().MatchString(own) && own != names[0] {
		names = append(names, own)
	}
	return names
}

var plainName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`) })

// pattern is a path as the rules have it: from the home directory, or from the root, which
// is written with two slashes.
func pattern(h clients.Host, path string) string {
	if rel, err := filepath.Rel(h.Home, path); err == nil && filepath.IsLocal(rel) {
		return "~/" + filepath.ToSlash(rel)
	}
	p := filepath.ToSlash(path)
	if vol := filepath.VolumeName(path); len(vol) == 2 { // C:
		p = "/" + strings.ToLower(vol[:1]) + p[2:]
	}
	return "/" + p
}

// commands are those of Claude Code that make a change.
func commands(swaps []clients.Swap) (out [][]string) {
	for _, s := range swaps {
		scope := string(s.List.Scope)
		if s.Entry != nil && !slices.Contains(s.Gone, s.Name) {
			out = append(out, register(s, scope))
		}
		for _, name := range s.Gone {
			out = append(out, []string{"mcp", "remove", "--scope", scope, name})
		}
		if s.Entry != nil && slices.Contains(s.Gone, s.Name) { // one of them is in its place
			out = append(out, register(s, scope))
		}
	}
	return out
}

func register(s clients.Swap, scope string) []string {
	return slices.Concat([]string{"mcp", "add", "--scope", scope, s.Name, "--", s.Entry.Command}, s.Entry.Args)
}

// patience is how long Claude Code may take for one command.
const patience = time.Minute

// tell has Claude Code change its own file, and checks what has come of it.
func (p *Plan) tell(ctx context.Context, c *Change) error {
	for _, s := range c.swap {
		dir := p.o.Host.Home
		if s.List.Scope == clients.Local {
			dir = s.List.Dir
		}
		for _, args := range commands([]clients.Swap{s}) {
			if err := p.run(ctx, dir, args); err != nil {
				return err
			}
		}
	}
	data, _, err := replace.Read(c.file.Target)
	if err != nil {
		return err
	}
	now, err := p.o.Host.With(c.file, data)
	if err != nil {
		return err
	}
	for _, s := range c.swap {
		l := now.Find(s.List.Scope, s.List.Dir)
		entry := (*clients.Server)(nil)
		if l != nil {
			entry = l.Server(s.Name)
		}
		if entry == nil || entry.Guard == nil || !s.List.Alike(l, append(slices.Clone(s.Gone), s.Name)...) {
			return errors.New("claude mcp has left something else in its file than it was told to")
		}
		for _, name := range s.Gone {
			if name != s.Name && l.Server(name) != nil {
				return fmt.Errorf("claude mcp remove has left %s where it was", name)
			}
		}
	}
	c.After = data
	return nil
}

func (p *Plan) run(ctx context.Context, dir string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.o.Claude, args...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	cmd.Env = append(cmd.Environ(), "DISABLE_AUTOUPDATER=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		line, _, _ := strings.Cut(string(bytes.TrimSpace(out)), "\n")
		return fmt.Errorf("claude %s: %w: %.200s", strings.Join(args[:2], " "), err, line)
	}
	return nil
}
