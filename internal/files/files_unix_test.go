//go:build unix

package files_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/haldir-mcp/haldir/internal/files"
)

func pipe(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatHasNoEndOrNoBeginning(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]error{
		pipe(t): files.ErrNoWriter, "/dev/zero": files.ErrTooLarge, t.TempDir(): unix.EISDIR, filepath.Join(t.TempDir(), "none"): fs.ErrNotExist,
	} {
		data, err := files.Read(path)
		if !errors.Is(err, want) || len(data) > 0 || strings.Count(err.Error(), path) != 1 {
			t.Errorf("%s: %d bytes, %v", path, len(data), err)
		}
	}
	if _, err := files.ReadTo("/dev/zero", 64<<20); !errors.Is(err, files.ErrTooLarge) || !strings.HasSuffix(err.Error(), "it is larger than 64 MiB") {
		t.Errorf("more than is read of it: %v", err)
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := errors.Join(os.WriteFile(large, nil, 0o600), os.Truncate(large, files.Most+1)); err != nil {
		t.Fatal(err)
	}
	if data, err := files.ReadTo(large, 64<<20); err != nil || len(data) != files.Most+1 {
		t.Errorf("a large one: %d bytes, %v", len(data), err)
	}
	if data, err := files.Read("/dev/null"); err != nil || len(data) > 0 {
		t.Errorf("/dev/null: %q, %v", data, err)
	}
}

// A pipe that has a writer is read to the end, however slowly that writes.
func TestAPipeWithAWriter(t *testing.T) {
	t.Parallel()
	path := pipe(t)
	w, err := os.OpenFile(path, os.O_RDWR, 0) // does not wait for the reader
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		data []byte
		err  error
	}
	got := make(chan result)
	go func() {
		data, err := files.Read(path)
		got <- result{data, err}
	}()
	text := strings.Repeat("version: 1\n", 20_000) // more than the pipe holds, so it has been opened
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || string(r.data) != text {
		t.Errorf("%d bytes, %v", len(r.data), r.err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.WriteString("all")
	_ = w.Close() // before it is read, as a quick shell does
	if data, err := files.Read(filepath.Join("/dev/fd", strconv.Itoa(int(r.Fd())))); err != nil || string(data) != "all" {
		t.Errorf("%q, %v", data, err)
	}
	_ = r.Close()
}
