//go:build unix

package main_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"

	"github.com/haldir-mcp/haldir/internal/packs"
)

// What a pack has written goes with its comments, by the console too.
func TestPoliciesOfAPackAreRemovedByTheConsole(t *testing.T) {
	t.Parallel()
	all, err := packs.All()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(p packs.Pack) bool { return p.Name == "git" })
	text := all[i].Text(packs.Use{Upstream: "git"})
	from := strings.Index(text, "policies:\n") // it is the last
	ids := regexp.MustCompile(`id: (git-[a-z-]+)`).FindAllStringSubmatch(text, -1)
	if len(ids) < 2 || from < strings.Index(text, "scopes:") || !strings.Contains(text[from:], "  # ") {
		t.Fatal(text)
	}
	c := startConsole(t, text)
	for _, id := range ids {
		c.must(http.StatusOK, fmt.Sprintf(`curl -X DELETE https://haldir.xyz/v1/proxy/policies/%s -H "Authorization: Bearer hld_xxx"`, id[1]), nil)
	}
	now, err := os.ReadFile(filepath.Join(c.dir, "haldir.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text[:from], string(now)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// A console that has made the config itself goes by it, and so do the words of others about it.
func TestAConsoleThatBeganWithoutAConfigIsConfirmed(t *testing.T) {
	t.Parallel()
	c := startConsole(t, "")
	add := func(id string) string {
		return fmt.Sprintf(`curl -X POST https://haldir.xyz/v1/proxy/policies -H "Authorization: Bearer hld_xxx" -H "Content-Type: application/json" -d '{"type":"deny","id":%q,"tools":["rm_*"]}'`, id)
	}
	c.must(http.StatusCreated, add("one"), nil)
	c.haldir("policy", "remove", "one")
	reload := c.command("reload")
	tty, err := pty.Start(reload)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	if _, err := io.WriteString(tty, "y\n"); err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(tty) // ends by an error when the other end is closed
	if err := reload.Wait(); err != nil || !strings.Contains(string(said), "the deny rule one is gone") {
		t.Fatalf("%v: %s", err, said)
	}
	for end := time.Now().Add(20 * time.Second); !strings.Contains(c.stderr.String(), "the changed config is in force"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not taken: ", c.stderr)
		}
	}
}
