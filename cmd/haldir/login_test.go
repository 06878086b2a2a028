package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// opener is where a browser would be: it opens the address that login prints.
type opener struct {
	t   *testing.T
	buf bytes.Buffer
	did bool
}

var address = regexp.MustCompile(`(?m)^  (http\S+)$`)

func (o *opener) Write(p []byte) (int, error) {
	n, err := o.buf.Write(p)
	if m := address.FindSubmatch(o.buf.Bytes()); m != nil && !o.did {
		o.did = true
		go func() {
			resp, err := http.Get(string(m[1]))
			if err != nil {
				o.t.Errorf("browse: %v", err)
				return
			}
			_ = resp.Body.Close()
		}()
	}
	return n, err
}

// TestSignInCallAndSignOut is what a person does, by the command line. None of the
// server's secrets may be in anything that haldir prints, or readable in its files.
func TestSignInCallAndSignOut(t *testing.T) {
	srv := mcptest.OAuthScript{AuthMethods: []string{"client_secret_basic"}}.New(t)
	dir := t.TempDir()
	cfg := filepath.Join(dir, "haldir.yaml")
	text := fmt.Sprintf("version: 1\nkeyring: file\naudit: {arguments: full}\nlog: {level: debug}\nupstreams:\n  - {name: crm, url: %q, auth: {type: oauth}}\n", srv.URL())
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	var all bytes.Buffer
	haldir := func(want int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var out bytes.Buffer
		said := &opener{t: t}
		code := run(ctx, append(args, "--config", cfg, "--state-dir", state), strings.NewReader(""), &out, said)
		text := out.String() + said.buf.String()
		if code != want {
			t.Fatalf("haldir %v: exit status %d: %s", args, code, text)
		}
		if !strings.Contains(text, "/authorize?") { // the address of a sign-in has to be shown
			all.WriteString(text)
		}
		return text
	}
	says := func(text, want string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q: %s", want, text)
		}
	}
	says(haldir(1, "call", "crm/echo", "--args", `{"text":"hello"}`), "upstream login crm")
	says(haldir(0, "upstream", "login", "crm", "--no-browser"), "signed in to upstream crm")
	says(haldir(0, "call", "crm/echo", "--args", `{"text":"hello"}`), "hello")
	srv.ExpireAccess()
	says(haldir(0, "call", "crm/echo", "--args", `{"text":"again"}`), "again")
	says(haldir(0, "upstream", "list"), "ready")
	says(haldir(0, "secret", "list"), "sign-in")
	says(haldir(0, "audit", "list", "--json"), "echo")
	says(haldir(0, "upstream", "logout", "crm"), "signed out of upstream crm")
	says(haldir(1, "call", "crm/echo", "--args", `{"text":"hello"}`), "upstream login crm")

	err := filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		all.Write(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range srv.Secrets() {
		if i := bytes.Index(all.Bytes(), []byte(v)); i >= 0 {
			t.Errorf("a secret of the server stands in: %q", all.Bytes()[max(0, i-60):i])
		}
	}
}
