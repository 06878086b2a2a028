package adopt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haldir-mcp/haldir/internal/clients"
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

// held is the directory that Claude Code makes beside its file while it changes it, and takes
// for abandoned once nobody has touched it for abandoned.
const (
	held      = ".lock"
	abandoned = 10 * time.Second
)

// hold keeps Claude Code from its own file while that is changed: it may be running, and what
// it has read before would be written over what is changed, or the other way round.
func hold(ctx context.Context, p clients.Place) (release func() error, err error) {
	if p.Client != clients.ClaudeCode || p.Scope != clients.User {
		return func() error { return nil }, nil
	}
	path := p.Path + held
	for deadline := time.Now().Add(2 * abandoned); ; time.Sleep(5 * time.Millisecond) {
		err := os.Mkdir(path, 0o700)
		if err == nil {
			return func() error { return os.Remove(path) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		info, err := os.Stat(path)
		switch {
		case ctx.Err() != nil:
			return nil, interrupted(ctx)
		case err == nil && info.IsDir() && time.Since(info.ModTime()) > abandoned:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%s is kept by Claude Code, which is changing it; if it does not run, remove %s", p.Path, path)
		}
	}
}
