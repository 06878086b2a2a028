package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAnOutputThatCannotBeWrittenIsToldOnce(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	if code := run(t.Context(), []string{"stop", "--state-dir", state}, strings.NewReader(""), io.Discard, io.Discard); code != 0 { // which is a record
		t.Fatal(code)
	}
	for _, verb := range []string{"audit export", "audit export --format csv", "audit export --format ocsf", "audit report", "audit report --format html", "audit report --format json"} {
		var said bytes.Buffer
		code := run(t.Context(), append(strings.Fields(verb), "--state-dir", state), strings.NewReader(""), full{}, &said)
		if code != exitFailed || strings.Count(said.String(), syscall.ENOSPC.Error()) != 1 {
			t.Errorf("%s: %d: %s", verb, code, &said)
		}
	}
}

func TestAFileThatWasNotWrittenWholeDoesNotStay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "out")
	half := func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, syscall.ENOSPC)
	}
	var a app
	for range 2 {
		if err := a.output(path, half); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the error is %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it stays: %v", err)
		}
	}
	// What was there before is nobody's to remove.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.output(path, half); !errors.Is(err, os.ErrExist) {
		t.Errorf("the error is %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("it has %q: %v", b, err)
	}
}
