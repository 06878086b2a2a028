package adopt_test

import (
	"errors"
	"testing"

	"github.com/haldir-mcp/haldir/internal/adopt"
	"github.com/haldir-mcp/haldir/internal/replace"
)

// Of runs that were planned in two windows on the same files one is carried out, and what it has
// done stands.
func TestTwoWindows(t *testing.T) {
	p := newPerson(t)
	p.write(".config/haldir/haldir.yaml", "version: 1\n")
	p.write(".cursor/mcp.json", `{"mcpServers": {"a": {"command": "a", "env": {"A_TOKEN": "sk-0123456789abcdef0123456789abcdef"}}}}`)
	const runs = 4
	plans, done := make([]*adopt.Plan, runs), make(chan error)
	for i := range plans {
		plans[i] = p.plan()
	}
	for _, plan := range plans {
		go func() {
			_, err := plan.Do(t.Context())
			done <- err
		}()
	}
	well := 0
	for range plans {
		if err := <-done; err == nil {
			well++
		} else if !errors.Is(err, replace.ErrChanged) {
			t.Error(err)
		}
	}
	if well != 1 {
		t.Errorf("%d of %d are done", well, runs)
	}
	if plan := p.plan(); len(plan.Files) > 0 {
		t.Errorf("what is done does not stand: %s", p.said(plan))
	}
	if names, err := p.store.Names(); err != nil || len(names) != 1 {
		t.Errorf("secrets: %v, %v", names, err)
	}

	// The same of those that take it back.
	var undos []*adopt.Undo
	for range runs {
		undos = append(undos, must(adopt.Last(p.o.StateDir, p.o.Host, p.store))(t))
	}
	for _, u := range undos {
		go func() { done <- u.Do(false) }()
	}
	well = 0
	for range undos {
		if err := <-done; err == nil {
			well++
		} else if !errors.Is(err, adopt.ErrNothing) {
			t.Error(err)
		}
	}
	if plan := p.plan(); well != 1 || len(plan.Upstreams) != 1 {
		t.Errorf("%d of %d took it back: %s", well, runs, p.said(plan))
	}
}
