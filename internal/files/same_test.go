package files_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/haldir-mcp/haldir/internal/files"
)

func TestSamePlace(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"real", "other"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "there"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", filepath.Join(root, "link")); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip(err) // it lets only some
		}
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"real/there", "link/there", true},
		{"real/not/yet", "link/not/yet", true},
		{"link/not/yet", "link/not/./yet", true},
		{"real", "link", true},
		{"real/there", "other/there", false},
		{"real/not/yet", "other/not/yet", false},
		{"real/there", "link/not", false},
		{"real/not", "link/yet", false},
		{"nowhere/a", "elsewhere/a", false},
	} {
		if got := files.SamePlace(filepath.Join(root, c.a), filepath.Join(root, c.b)); got != c.same {
			t.Errorf("%s and %s are one place: %v", c.a, c.b, got)
		}
	}
}
