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
	"sync"
	"testing"
	"time"

	"github.com/haldir-mcp/haldir/internal/mcptest"
)

// opener is where a browser would be: it opens the address that login prints.
type opener struct {
	t   *testing.T
	mu  sync.Mutex // the log is written to by more than one goroutine
	buf bytes.Buffer
	did bool
}

var address = regexp.MustCompile(`(?m)^  (http\S+)$`)

func (o *opener) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
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

// TestSignInWithoutAFile: what an error says must be all that a person types, where
// flags stand for a file.
func TestSignInWithoutAFile(t *testing.T) {
	srv := mcptest.OAuthScript{}.New(t)
	dir := t.TempDir()
	t.Setenv("HALDIR_CONFIG", "")
	t.Setenv("HALDIR_KEYRING", "file")
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Chdir(dir)
	flags := []string{"--upstream", "crm=" + srv.URL(), "--state-dir", filepath.Join(dir, "state")}
	haldir := func(want int, args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var out bytes.Buffer
		said := &opener{t: t}
		code := run(ctx, append(args, flags...), strings.NewReader(""), &out, said)
		if text := out.String() + said.buf.String(); code != want {
			t.Fatalf("haldir %v: exit status %d: %s", args, code, text)
		}
		return out.String() + said.buf.String()
	}
	text := haldir(1, "call", "crm/echo", "--args", `{"text":"hello"}`)
	if want := "haldir --state-dir " + filepath.Join(dir, "state") + " --upstream crm=" + srv.URL() + " upstream login crm"; !strings.Contains(text, want) {
		t.Errorf("it does not say %q: %s", want, text)
	}
	haldir(0, "upstream", "login", "crm", "--no-browser")
	if text := haldir(0, "call", "crm/echo", "--args", `{"text":"hello"}`); !strings.Contains(text, "hello") {
		t.Error(text)
	}
	if text := haldir(0, "pins", "list"); !strings.Contains(text, "crm") {
		t.Error(text)
	}
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
	says(haldir(1, "secret", "remove", "crm", "--sign-in"), "nobody is signed in")
	says(haldir(0, "upstream", "login", "crm", "--no-browser"), "signed in to upstream crm")
	says(haldir(1, "secret", "remove", "crm"), "--sign-in") // as of an upstream that is in no config any more
	haldir(0, "secret", "remove", "crm", "--sign-in")
	says(haldir(0, "secret", "list"), "no secrets are stored")
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
