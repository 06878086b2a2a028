package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// Problem is one mistake, or one warning, in a config file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`   // from 1; 0 when it concerns the whole file
	Column  int    `json:"column"` // from 1
	Where   string `json:"where"`  // the path in the document, e.g. policies[2].max_usd
	Message string `json:"message"`
	Warning bool   `json:"warning,omitempty"`
}

// String formats p the way compilers do.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Where != "" {
		b.WriteString(p.Where + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems are the mistakes of one file in the order of their places. It is the
// error of a config that does not load.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// near returns `; did you mean "x"?` for the known word nearest to got, or "" if
// none is near.
func near(got string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		d := levenshtein.Distance(strings.ToLower(got), strings.ToLower(k), nil)
		if strings.HasPrefix(k, got) && len(got) >= 3 {
			d = min(d, 1)
		}
		if d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// Suggest says which of the known words was meant, or lists them if they are few; it is
// made to follow a sentence.
func Suggest(got string, known []string) string {
	if best := near(got, known); best != "" {
		return best
	}
	if len(known) > 20 {
		return ""
	}
	return "; known here: " + strings.Join(known, ", ")
}
