package replace

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A file that a person saves while it is edited is not written over.
func TestAChangedFileIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haldir.yaml")
	if err := os.WriteFile(path, []byte("version: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, info, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("version: 1 # saved\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := File(path, before, []byte("mine"), info); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	// Nor one that has come, or gone, meanwhile.
	if err := File(path, nil, []byte("mine"), nil); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "version: 1 # saved\n" {
		t.Errorf("%q, %v", raw, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := File(path, before, []byte("mine"), info); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}
