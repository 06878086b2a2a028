package clients

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Programs of a project are passed over; those of a person are not, though they be in a repository
// at home.
func TestPath(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(home, filepath.FromSlash(name)) }
	for _, dir := range []string{"bin", "link", "repo/.git", "repo/bin", "repo/sub/bin", "repo2/bin", "node_modules/.bin", "repo/node_modules/.BIN", "other/Node_Modules/.bin", "other/.bin", "other/node_modules"} {
		if err := os.MkdirAll(at(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"link/in": "repo/bin", "link/npm": "other/Node_Modules/.bin", "repo/out": "repo2/bin", "alias": "repo"} {
		if err := os.Symlink(at(to), at(link)); err != nil {
			if runtime.GOOS == "windows" {
				t.Skip(err) // it lets only some
			}
			t.Fatal(err)
		}
	}
	own := []string{"bin", "repo2/bin", "other/.bin", "other/node_modules"}
	all := []string{".", "", "bin", "none"}
	for _, dir := range slices.Concat(own, []string{
		"repo", "repo/bin", "repo/sub/bin", "repo/out", "alias/bin", "link/in", "link/npm", "node_modules/.bin", "repo/node_modules/.BIN", "other/Node_Modules/.bin", "none",
	}) {
		all = append(all, at(dir))
	}
	for _, c := range []struct {
		dir  string
		want []string
	}{
		{"repo", own},
		{"repo/sub", own},
		{"alias/sub", own},
		{"", append(own, "repo", "repo/bin", "repo/sub/bin", "repo/out", "alias/bin", "link/in")}, // a person's programs may be anywhere at home
	} {
		h := Host{Home: home, Dir: at(c.dir), Env: func(name string) string {
			return map[string]string{"PATH": strings.Join(all, string(filepath.ListSeparator))}[name]
		}}
		var want []string
		for _, dir := range c.want {
			want = append(want, at(dir))
		}
		if got := filepath.SplitList(h.Path()); !slices.Equal(got, want) {
			t.Errorf("in %q: %q, not %q", c.dir, got, want)
		}
	}
}
