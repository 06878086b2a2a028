package adopt

import (
	"bytes"
	"slices"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/config/edit"
)

// unshown are the texts of a haldir.yaml that must not be shown, also of one that cannot be read.
func unshown(path string, data []byte) (out []string) {
	cfg, err := config.Parse(data, path)
	if err != nil {
		return lines(data)
	}
	for _, u := range cfg.Upstreams {
		out = append(out, inTheClear(u)...)
	}
	spelled := false // in another way than it is read
	for _, v := range out {
		if !bytes.Contains(data, []byte(v)) {
			out, spelled = append(out, strings.Split(v, "\n")...), true
		}
	}
	if spelled {
		out = append(out, lines(data)...)
	}
	for line := range strings.Lines(string(data)) { // also in a comment
		out = append(out, hidden([]string{"- " + strings.TrimSpace(line)})...)
	}
	return slices.DeleteFunc(out, func(s string) bool { return len(s) < 4 })
}

// inTheClear are the secrets of an upstream that are in haldir.yaml in the clear.
func inTheClear(u config.Upstream) (out []string) {
	look := func(name, value string) {
		if secretive(name, value) {
			out = append(out, value)
		} else {
			out = append(out, hidden([]string{value})...)
		}
	}
	for _, h := range u.Headers {
		look("token", h.Value)
	}
	for _, e := range u.Env {
		name, v, _ := strings.Cut(e, "=")
		look(name, v)
	}
	look("token", u.Bearer)
	if u.OAuth != nil {
		look("secret", u.OAuth.ClientSecret)
	}
	look("", u.Command)
	look("", u.URL)
	return append(out, hidden(u.Args)...)
}

// lines are those of a text that nobody can read in which a secret may be.
func lines(data []byte) (out []string) {
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if edit.LooksSecret(line, strings.ReplaceAll(line, "${", "")) {
			out = append(out, line)
		}
	}
	return out
}

// longText is more than a setting has, in bytes: what people have told an agent stands in Claude
// Code's file, too.
const longText = 4 << 10

// among is [hidden] for texts of any kind and any number. A long one is not taken apart, but
// hidden as a whole if a secret may be in it.
func among(list []string) (out []string) {
	short, some := slices.Clone(list), false
	for i, s := range list {
		suspect := edit.LooksSecret(s, strings.ReplaceAll(s, "${", ""))
		switch {
		case len(s) <= longText:
			some = some || suspect || strings.Contains(s, "://") || strings.Contains(strings.ToLower(s), "x-")
		case suspect:
			out, short[i] = append(out, s), ""
		default:
			short[i] = ""
		}
	}
	if some {
		out = append(out, hidden(short)...)
	}
	return out
}
