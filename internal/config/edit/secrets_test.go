package edit_test

import (
	"testing"

	"github.com/haldir-mcp/haldir/internal/config/edit"
)

// A password in an address is a secret, whatever holds the address.
func TestPasswordsInAddressesLookSecret(t *testing.T) {
	for value, want := range map[string]bool{
		"postgres://admin:hunter2secret@db.example.org/app": true,
		"redis://:hunter2@localhost:6379":                   true,
		"--dsn=postgresql://user:pw@host":                   true,
		"postgres://admin@db.example.org/app":               false,
		"http://localhost:8080/@scope/name":                 false,
		"https://host:443/a:b@c":                            false,
		"postgres://admin:${keyring:a.PW}@db":               false,
	} {
		if got := edit.LooksSecret("", value); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
}
