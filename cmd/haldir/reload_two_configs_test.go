//go:build linux

package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Haldirs with configs of their own may share a state directory. What waits of one file for a
// person is nothing to an edit of the other.
func TestAnEditDoesNotWaitForAnotherConfig(t *testing.T) {
	t.Parallel()
	strict := "policies: [{type: deny, tools: [scan_domain]}]\n"
	r := serveConfig(t, strict)
	b := *r.h
	b.Config = filepath.Join(b.Dir, "b", "haldir.yaml")
	if err := os.Mkdir(filepath.Dir(b.Config), 0o700); err != nil {
		t.Fatal(err)
	}
	// The very bytes that A has too: not even then.
	b.Configure(t, r.config(""))
	r.edit(r.config(""))
	r.until("it waits", func() bool { return strings.Contains(r.notice(), " reload`") })
	for _, args := range [][]string{
		{"policy", "add", "--type", "deny", "--tools", "dns_lookup", "--dry-run"},
		{"policy", "list"},
		{"explain", "scan_domain"},
		{"policy", "add", "--type", "deny", "--tools", "dns_lookup"},
	} {
		if _, errOut, code := b.Run(t, args...); code != 0 || errOut != "" {
			t.Errorf("%v: exit status %d, and it is said of the other config: %q", args, code, errOut)
		}
	}
	if out, errOut, code := b.Run(t, "reload"); code != 0 || out != "" || !strings.Contains(errOut, "no running haldir waits") {
		t.Errorf("reload: exit status %d: %s%s", code, out, errOut)
	}
	// And A goes on waiting.
	if got := r.call("a.example"); !strings.Contains(got, "deny list") {
		t.Errorf("it is in force: %s", got)
	}
}
