//go:build unix

package main_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

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
