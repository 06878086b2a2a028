package edit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/config/edit"
)

// What is secret among arguments, however programs are given it.
func TestSecretsAmongArguments(t *testing.T) {
	for _, c := range []struct {
		args string // on a line each
		want []string
	}{
		{"-y\n@supabase/mcp-server-supabase\n--access-token=sbp_0123456789", []string{"access-token: sbp_0123456789"}},
		{"mcp-remote\nhttps://a.example.com/sse\n--header\nAuthorization: Bearer lin_api_0123", []string{"Authorization: Bearer lin_api_0123"}},
		{"--header\nAuthorization:Bearer lin_api_0123", []string{"Authorization: Bearer lin_api_0123"}},
		{"--header=X-Api-Key: abcdef", []string{"X-Api-Key: abcdef"}},
		{"--api-key\nabcdef\n--verbose", []string{"api-key: abcdef"}},
		{"-password\n-abc/def=", []string{"password: -abc/def="}},
		{"--token\n--verbose\nfiles", nil},
		{"--token\n--secret\nabcdef", []string{"secret: abcdef"}},
		{"run\n-e\nGITHUB_TOKEN=abcdef\n--env=DB_PASSWORD=hunter2\n-e\nGITHUB_TOKEN\nimage", []string{"GITHUB_TOKEN: abcdef", "DB_PASSWORD: hunter2"}},
		{"-c\nexec npx -y x --token 'ghi jkl' --header \"X-Secret: mnop\"", []string{"token: ghi jkl", "X-Secret: mnop"}},
		{"-c\nN=1 API_KEY=abcdef npx", []string{"API_KEY: abcdef"}},
		{"API_KEY=abc def", []string{"API_KEY: abc def"}},
		{`--config` + "\n" + `{"url": "https://a", "apiKey": "a\"bcd", "n": 1}`, []string{`apiKey: a\"bcd`}},
		{"https://a.example.com/mcp?team=1&api_key=abcdef&x=y#f", []string{"api_key: abcdef"}},
		{"postgresql://u:pw@host/db?sslmode=off", []string{": postgresql://u:pw@host/db?sslmode=off"}},
		{"ghp_0123456789abcdefghij", []string{": ghp_0123456789abcdefghij"}},
		{"--token-file\n/run/token\n--api-key-env=API_KEY\n--no-auth\nfiles\n--max-tokens\n4096\n--max-tokens=4096\n/srv/token/x\nC:\\keys\\a", nil},
		{`{"headers": {"Authorization": "Bearer ntn_a", "Version": "1"}, "tokens": ["abcdef", "ghi\"kl"], "at": "https://h/?key=mnop"}`, []string{"Authorization: Bearer ntn_a", "tokens: abcdef", `tokens: ghi\"kl`, "key: mnop"}},
		{`[{"apiKey": "abcdef"}]`, []string{"apiKey: abcdef"}},
		{"Server=db;User Id=sa; Password = 'a;b=c' ;Encrypt=true", []string{"Password: 'a;b=c' "}},
		{"CONN=Server=db;Pwd=abcdef;", []string{"password: abcdef"}},
		{"AccountName=a;AccountKey=abc/def==;EndpointSuffix=core.windows.net", []string{"AccountKey: abc/def=="}},
		{"--header\nX-Custom:k12345678\n-H\nX-Region: eu", []string{"X-Custom: k12345678"}},
		{"https://mcp.zapier.com/api/mcp/s/NGQ0YzRhYmMtZGVmMC00/mcp", []string{"secret: NGQ0YzRhYmMtZGVmMC00"}},
		{"https://a.example.com/u/0b5a9a5e-07cd-4b6f-8c3d-8a4a1f6b9f10/mcp#token=abcdef", []string{"secret: 0b5a9a5e-07cd-4b6f-8c3d-8a4a1f6b9f10", "token: abcdef"}},
		{"https://a.example.com/mcp?config=eyJhcGlLZXkiOiAiYWJjZGVmIn0=&profile=my-profile", []string{"secret: eyJhcGlLZXkiOiAiYWJjZGVmIn0="}},
		{"https://hooks.slack.com/services/T0/B0/xyz", []string{": https://hooks.slack.com/services/T0/B0/xyz"}},
		{"https://raw.example.com/modelcontextprotocol/server-filesystem/2025-11-25/getUserAccountBalanceHistory/h264-to-mp4-v2/@scope/name@1.2.3\n-y\n@modelcontextprotocol/server-filesystem@2025.11.25\nghcr.io/a/b:1.2.3\nfile:///home/u/NGQ0YzRhYmMtZGVmMC00\n[::1]:8080\n{x}\na=1;b=2", nil},
		{"--token\n${env:TOKEN}\n--header=Authorization: ${keyring:a}", nil},
	} {
		args := strings.Split(c.args, "\n")
		var got []string
		for _, a := range edit.Arguments(args) {
			if v := a.In(args); edit.LooksSecret(a.Name, v) {
				got = append(got, a.Name+": "+v)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", args, diff)
		}
	}
}

// Whatever the arguments are, values are parts of them, one behind the other.
func TestArgumentsDoNotOverlap(t *testing.T) {
	part := rapid.SampledFrom([]string{"--token", "--x", "=", " ", ": ", "\"", "'", "{", "}", "abc", "https://h?", "https://h/", "/", "&", "?", "#", "key", "-p", "\n", "é", ";", "[", "\\", "x-a: ", "a1b2c3d4e5f6g7h8"})
	rapid.Check(t, func(r *rapid.T) {
		args := rapid.SliceOfN(rapid.Map(rapid.SliceOfN(part, 0, 8), func(p []string) string { return strings.Join(p, "") }), 0, 4).Draw(r, "args")
		found := edit.Arguments(args)
		if !slices.IsSortedFunc(found, func(a, b edit.Argument) int { return (a.At-b.At)*1000 + a.Start - b.Start }) {
			r.Error("not in order")
		}
		for i, a := range found {
			if a.In(args) == "" || i > 0 && found[i-1].At == a.At && found[i-1].End > a.Start {
				r.Error(fmt.Sprint(args, found))
			}
		}
	})
}
