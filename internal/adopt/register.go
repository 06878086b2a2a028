package adopt

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/haldir-mcp/haldir/internal/clients"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// registration is what Claude Code is told to have haldir among a person's own servers; nil where
// the entry is edited like all else: in another list or a relative directory, which Claude Code
// looks for elsewhere than init, and in the place of a server of that name, which only claude mcp remove takes away.
func registration(f *clients.File, swaps []clients.Swap) []string {
	if f.Client != clients.ClaudeCode || f.Scope != clients.User || !filepath.IsAbs(f.Path) {
		return nil
	}
	for _, s := range swaps {
		if s.List.Scope == clients.User && s.Entry != nil && s.Entry.Cwd == "" && s.List.Server(s.Name) == nil {
			return slices.Concat([]string{"mcp", "add", "--scope", "user", s.Name, "--", s.Entry.Command}, s.Entry.Args)
		}
	}
	return nil
}

// What Claude Code may take to register haldir, and to end when it is told to.
const (
	patience = time.Minute
	farewell = 2 * time.Second
)

// What a shell or env exits with for a program that it cannot run, or find: claude is often a script.
const (
	notRunnable = 126
	notFound    = 127
)

// register has Claude Code write haldir's entry. note says why that could not be tried. turn goes
// to Claude Code as well: no other run of init begins while it lives, though haldir be killed.
func (p *Plan) register(ctx context.Context, c *Change, turn *os.File) (note string, err error) {
	limit := cmp.Or(p.o.Patience, patience)
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	runtime.LockOSThread() // the child is killed with the thread that has started it
	defer runtime.UnlockOSThread()
	var said head
	cmd := exec.CommandContext(timed, p.o.Claude, c.Command...)
	cmd.Dir = p.o.Host.Home // no project has a say
	// It may be a script, whose interpreter is looked for on PATH.
	cmd.Env = append(cmd.Environ(), "PATH="+p.o.Host.Path(), "DISABLE_AUTOUPDATER=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1")
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = farewell
	leash(cmd, turn)
	if err = cmd.Start(); err == nil {
		err = cmd.Wait()
		putDown(cmd) // with what it has started, which could write later
	} else if timed.Err() == nil {
		return fmt.Sprintf("claude mcp add could not be started (%v), so that %s was edited", err, c.Path), nil
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return "", nil
	case ctx.Err() != nil:
		return "", interrupted(ctx)
	case cmd.ProcessState.ExitCode() == notRunnable, cmd.ProcessState.ExitCode() == notFound:
		return fmt.Sprintf("claude mcp add could not be started (%v: %s), so that %s was edited", err, said.words(), c.Path), nil
	case timed.Err() != nil:
		return "", fmt.Errorf("claude mcp add had not ended after %v, and was stopped; see what claude mcp list says, and try again", limit)
	}
	return "", fmt.Errorf("claude mcp add has refused to register haldir (%w): %s; mend that, and try again", err, said.words())
}

// head is the first of what a program says.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), 1<<10-min(h.Len(), 1<<10))])
	return len(p), nil
}

// words are what it says, as a person can be shown it. Where they are cut is marked, since what is
// left of a secret there must not be shown either.
func (h *head) words() string {
	text := strings.Join(strings.FieldsFunc(h.String(), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if r := []rune(text); len(r) > 300 || h.Len() >= 1<<10 {
		text = string(r[:min(len(r), 300)]) + "…"
	}
	return cmp.Or(text, "it has not said why")
}

// follow plans the change anew on the file as Claude Code has written it, in its own form. Beside
// the entry, and what Claude Code notes when it starts for the first time, that must say what it
// said before: all else is of somebody who is at work there. note says that there is no entry.
func (p *Plan) follow(c *Change) (note string, err error) {
	now, info, err := replace.Read(c.file.Target)
	if err != nil {
		return "", err
	}
	changed := func(err error) error {
		return fmt.Errorf("%s: %w by something else while claude mcp add was at work: %w; try again", c.Path, replace.ErrChanged, err)
	}
	if now == nil {
		return "", changed(errors.New("it is gone"))
	}
	f, err := p.o.Host.With(c.file, now)
	if err != nil {
		return "", changed(err)
	}
	text := now // without the entry, which gets its place and its form by the plan
	for _, s := range c.swaps {
		if s.List.Scope != clients.User {
			continue
		}
		if text, err = p.o.Host.PutBack(f, s.List, nil, s.Name, true); err != nil {
			return "", changed(err)
		}
	}
	if bytes.Equal(text, now) {
		note = fmt.Sprintf("claude mcp add has not registered haldir in %s, which was edited", c.Path)
	}
	p.Masks = append(p.Masks, f.Secrets(secretive, among)...)
	if f, err = p.o.Host.With(c.file, text); err != nil {
		return "", changed(err)
	}
	if other, _ := f.Since(c.file); len(other) > 0 {
		return "", changed(fmt.Errorf("it says something else under %s", strings.Join(other, ", ")))
	}
	swaps := slices.Clone(c.swaps)
	for i, s := range swaps {
		swaps[i].List = f.Find(s.List.Scope, s.List.Dir)
	}
	after, err := p.o.Host.Swap(f, swaps...)
	if err != nil {
		return "", changed(err)
	}
	c.base, c.After, c.info = now, after, info
	return note, nil
}
