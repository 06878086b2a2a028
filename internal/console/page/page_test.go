package page_test

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/haldir-mcp/haldir/internal/console/page"
)

// views are all of them, by their routes.
var views = []string{"", "approvals", "calls", "spend", "sessions", "policies", "upstreams", "pins"}

func TestWeight(t *testing.T) {
	total := 0
	err := fs.WalkDir(page.Files(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(page.Files(), path)
		total += len(text)
		for _, foreign := range []string{"http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", " style=", "eval("} {
			for line := range strings.Lines(string(text)) {
				if strings.Contains(line, foreign) && !strings.Contains(line, "http://www.w3.org/2000/svg") {
					t.Errorf("%s has %q: %s", path, foreign, line)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if total > 200<<10 {
		t.Errorf("the page weighs %d bytes, more than 200 KiB", total)
	}
	t.Logf("the page weighs %d bytes", total)
}
