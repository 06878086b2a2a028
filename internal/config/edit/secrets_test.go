package edit_test

import (
	"strings"
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

// Tokens are known by how they begin, whatever holds them; what merely begins alike is none.
func TestTokensLookSecret(t *testing.T) {
	for value, want := range map[string]bool{
		"lin_api_0123456789abcdef":                      true,
		"hf_0123456789abcdefABCDEF":                     true,
		"x ntn_0123456789abcdef":                        true,
		"tvly-abcdef0123":                               true,
		"Bearer abcdef0123456":                          true,
		"https://hooks.slack.com/services/T0/B0/x":      true,
		"https://discord.com/api/webhooks/1/x":          true,
		"hf_transformers":                               false,
		"a bearer token":                                false,
		"https://discord.com/channels/1":                false,
		"https://slack.com/hooks.slack.com":             false,
		"half_0123456789abcdefABCDEF, ntn_${keyring:a}": false,
	} {
		if got := edit.LooksSecret("", value); got != want {
			t.Errorf("%s: %v", value, got)
		}
	}
	for header, want := range map[string]bool{
		"X-Custom: k12345678": true, "X-Region: us-east": false, "X-Api-Version: 2024-01-01": false, "Accept: application/json2": false, "X-Note: 12 words or more": false,
	} {
		if name, value, _ := strings.Cut(header, ": "); edit.LooksSecret(name, value) != want {
			t.Errorf("%s is %v", header, !want)
		}
	}
}
