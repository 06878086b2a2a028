package replace

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
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

// What a killed File has left goes, and nothing that somebody else may have made.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"mcp.json": "after", ".mcp.json-123": "after", ".mcp.json-4": "aft", ".mcp.json-5": "", ".mcp.json-6": "before",
		".mcp.json-7": "mine", ".mcp.json-old": "after", ".mcp.json": "after", "mcp.json-8": "after", ".other.json-9": "after",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(filepath.Join(dir, "mcp.json"), []byte("before"), []byte("after"), nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".mcp.json", ".mcp.json-7", ".mcp.json-old", ".other.json-9", "mcp.json", "mcp.json-8"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("%v, %v", left, err)
	}
	if err := Sweep(filepath.Join(dir, "none", "mcp.json")); err != nil {
		t.Error(err)
	}
}
