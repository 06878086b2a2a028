package secret_test

import (
	"fmt"
	"testing"

	"github.com/haldir-mcp/haldir/internal/secret"
)

// BenchmarkStore is what a token costs: to look it up unchanged, after another process
// has changed it, and to replace it, with its sync.
func BenchmarkStore(b *testing.B) {
	dir := b.TempDir()
	s, other := secret.New(dir, nil), secret.New(dir, nil)
	if err := s.Set("token", value); err != nil {
		b.Fatal(err)
	}
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Get("token"); err != nil {
				b.Fatal(err)
			}
		}
	})
	n := 0
	b.Run("replace", func(b *testing.B) {
		for b.Loop() {
			n++
			if err := s.Set("token", fmt.Sprint(value, n)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("replace and read elsewhere", func(b *testing.B) {
		for b.Loop() {
			n++
			if err := s.Set("token", fmt.Sprint(value, n)); err != nil {
				b.Fatal(err)
			}
			if _, err := other.Get("token"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
