package edit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/haldir-mcp/haldir/internal/config"
)

// added and removed make a change to a text, without a file.
func added(text []byte, list List, entry string) (Result, error) {
	e, err := readEntry([]byte(entry), list, Options{Source: "entry"})
	if err != nil {
		return Result{}, err
	}
	return (&change{list: list, entry: e, o: Options{Source: "entry"}}).apply("f", text)
}

func removed(text []byte, list List, id string) (Result, error) {
	return (&change{list: list, remove: id}).apply("f", text)
}

// page is a random haldir.yaml.
type page struct {
	text  string
	plain bool // its policies are there, and not written as nothing
	flow  bool
}

func drawPage(t *rapid.T) page {
	pick := func(label string, words ...string) string { return rapid.SampledFrom(words).Draw(t, label) }
	yes := func(label string) bool { return rapid.Bool().Draw(t, label) }
	comment := func(indent string) string {
		return pick("comment", "", "", "", indent+"# a comment: {of} [one] line\n", indent+"# - {type: deny}\n", indent+"#\n"+indent+"# two\n", "\n", "\n\n", "\n"+indent+"# apart\n", indent+"# apart\n\n")
	}
	trail := func() string { return pick("trail", "", "", "   # why: \"because\"", " # [") }
	names := 0
	entry := func(indent string, braces bool) string {
		names++
		pairs := [][2]string{{"type", "deny"}}
		pairs = append(pairs, [2]string{"tools", pick("tools", "[a, 'b']", "[ \"*/x\" , y ]", "[\"#no comment\"]")})
		if yes("id") {
			pairs = append(pairs, [2]string{"id", pick("id", "i", `"i`, "'i") + fmt.Sprint(names)})
			if q := pairs[2][1][:1]; q != "i" {
				pairs[2][1] += q
			}
		}
		if yes("when") {
			pairs = append(pairs, [2]string{"when", pick("when", `"args.a == 1"`, `'args.b == "it"'`)})
		}
		if braces {
			var parts []string
			for _, p := range pairs {
				parts = append(parts, p[0]+": "+p[1])
			}
			return "{" + strings.Join(parts, ", ") + "}"
		}
		if yes("block text") {
			pairs = append(pairs, [2]string{"agents", "\n" + indent + "- x*\n" + indent + "- z"}, [2]string{"mode", pick("mode", "shadow", "enforce")})
		}
		var lines []string
		for _, p := range pairs {
			sep := " "
			if p[1][0] == '\n' {
				sep = ""
			}
			lines = append(lines, p[0]+":"+sep+p[1]+trail())
			if yes("inner comment") {
				lines = append(lines, "# inside")
			}
		}
		return strings.Join(lines, "\n"+indent)
	}
	section := func(list string) string {
		switch pick("form", "block", "block", "block", "flow", "flow lines", "empty") {
		case "empty":
			return list + ": []" + trail() + "\n"
		case "flow":
			var parts []string
			for range rapid.IntRange(1, 3).Draw(t, "n") {
				parts = append(parts, entry("", true))
			}
			return list + ": [" + strings.Join(parts, ", ") + pick("comma", "", ",", " , ") + "]" + trail() + "\n"
		case "flow lines":
			out := list + ": [" + trail() + "\n"
			n := rapid.IntRange(1, 3).Draw(t, "n")
			last := pick("comma", "", ",")
			for i := range n {
				sep := ","
				if i == n-1 {
					sep = last
				}
				out += strings.ReplaceAll(comment("  "), "\n\n", "\n") + "  " + entry("", true) + sep + trail() + "\n"
			}
			return out + comment("  ") + "]" + trail() + "\n"
		}
		indent, gap := pick("indent", "", "  ", "    "), pick("gap", " ", "   ")
		out := list + ":" + trail() + "\n"
		apart := pick("apart", "", "", "\n")
		for i := range rapid.IntRange(1, 4).Draw(t, "n") {
			if i > 0 {
				out += apart
			}
			out += comment(indent) + indent + "-" + gap + entry(indent+" "+gap, yes("braces")) + trail() + "\n"
		}
		return out + pick("after", "", "", indent+"   # deeper\n", indent+"# after\n")
	}
	var p page
	var parts []string
	parts = append(parts, "version: 1"+trail()+"\n")
	parts = append(parts, "denied_tools: show\n")
	if p.plain = rapid.IntRange(0, 5).Draw(t, "there") > 0; p.plain {
		parts = append(parts, section("policies"))
	}
	if yes("costs") {
		parts = append(parts, "costs:\n  - {tools: [a], usd: 0.10}\n")
	}
	parts = rapid.Permutation(parts).Draw(t, "order")
	p.text = pick("head", "", "---\n", "# head\n", "# head\n\n")
	for _, part := range parts {
		p.text += part + strings.Replace(comment(""), "\n\n", "\n", 1)
	}
	p.flow = strings.Contains(p.text, "policies: [")
	if yes("unterminated") {
		p.text = strings.TrimRight(p.text, "\n")
	}
	switch pick("line end", "\n", "\r\n", "\r") {
	case "\r\n":
		p.text = strings.ReplaceAll(p.text, "\n", "\r\n")
	case "\r":
		p.text = strings.ReplaceAll(p.text, "\n", "\r")
	}
	if yes("bom") {
		p.text = bom + p.text
	}
	return p
}

var newEntries = []string{
	`{"type":"deny","tools":["delete_*","*/x"]}`,
	"type: rate_limit\nmax_calls: 5\nwindow: 1m\n",
	"type: time_window\nallowed_hours: {start: \"09:00\", end: \"17:00\"}\ndays: [mon]\n# said\ntimezone: Europe/Berlin\n",
	"{type: deny, when: 'args.x == \"[a]: #b\"', id: fresh}",
}

// without reports whether b is a with some of its lines left out.
func without(a, b []string) bool {
	for len(a) > 0 && len(b) > 0 {
		if a[0] == b[0] {
			b = b[1:]
		}
		a = a[1:]
	}
	return len(b) == 0
}

func split(text []byte) []string {
	return strings.Split(strings.ReplaceAll(strings.ReplaceAll(string(text), "\r\n", "\n"), "\r", "\n"), "\n")
}

// What is added and removed again leaves the very bytes there were, and no line in between
// but those of the entry.
func TestAddThenRemove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPage(t)
		before := []byte(p.text)
		old, err := config.Parse(before, "f")
		if err != nil {
			t.Fatalf("the page does not load: %v\n%s", err, p.text)
		}
		entry := rapid.SampledFrom(newEntries).Draw(t, "entry")
		r, err := added(before, Policies, entry)
		if err != nil {
			t.Fatalf("%v\n%s", err, p.text)
		}
		if got := r.New.Engine.Rules()[len(old.Ruleset.Policies)]; got != r.ID {
			t.Fatalf("the id is %q, not %q", r.ID, got)
		}
		if !p.flow && !without(split(r.After), split(before)) {
			t.Fatalf("lines that are not the entry's have changed:\n%s\n-----\n%s", before, r.After)
		}
		if e := lineEnd(p.text); e != "\n" && strings.Contains(strings.ReplaceAll(string(r.After), e, ""), "\n") {
			t.Fatalf("line ends are mixed: %q", r.After)
		}
		back, err := removed(r.After, Policies, r.ID)
		if err != nil {
			t.Fatalf("%v\n%s", err, r.After)
		}
		if !reflect.DeepEqual(back.New.Ruleset, old.Ruleset) {
			t.Fatalf("%+v is not %+v", back.New.Ruleset, old.Ruleset)
		}
		if p.plain && string(back.After) != p.text {
			t.Fatalf("%q, then %q, then %q", p.text, r.After, back.After)
		}
		if !p.plain && !without(split(back.After), split(before)) {
			t.Fatalf("%q, then %q, then %q", p.text, r.After, back.After)
		}
	})
}

// What is removed takes no line with it but its own, and no comment from elsewhere.
func TestRemoveAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPage(t)
		old, err := config.Parse([]byte(p.text), "f")
		if err != nil {
			t.Fatal(err)
		}
		ids := old.Engine.Rules()
		if len(ids) == 0 {
			return
		}
		i := rapid.IntRange(0, len(ids)-1).Draw(t, "which")
		r, err := removed([]byte(p.text), Policies, ids[i])
		if err != nil {
			t.Fatalf("%v\n%s", err, p.text)
		}
		want := slices.Delete(slices.Clone(old.Ruleset.Policies), i, i+1)
		if len(want) != len(r.New.Ruleset.Policies) || len(want) > 0 && !reflect.DeepEqual(want, r.New.Ruleset.Policies) {
			t.Fatalf("%+v is not %+v", r.New.Ruleset.Policies, want)
		}
		if !p.flow && len(ids) > 1 && !without(split(r.Before), split(r.After)) {
			t.Fatalf("lines that are not the entry's have changed:\n%q\n%q", p.text, r.After)
		}
		for _, outside := range []string{"# a comment: {of} [one] line", "# apart", "# two", "# - {type: deny}", "# after", "# head"} {
			if strings.Count(p.text, outside) != strings.Count(string(r.After), outside) {
				t.Fatalf("the comment %q is not of the entry, and gone:\n%s\n-----\n%s", outside, p.text, r.After)
			}
		}
	})
}

// FuzzEdit holds that whatever the file and the entry are, a change either is refused or
// is what was meant, and can be taken back.
func FuzzEdit(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("golden files are missing", err)
	}
	for _, file := range append(files, "../../../haldir.yaml", "../../../cmd/haldir/demo.yaml") {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		text, entry := raw, []byte(newEntries[0])
		if strings.HasSuffix(file, ".txtar") {
			for _, part := range txtar.Parse(raw).Files {
				switch part.Name {
				case "haldir.yaml":
					text = part.Data
				case "entry":
					entry = part.Data
				}
			}
		}
		f.Add(text, entry, uint8(0))
		f.Add([]byte(strings.ReplaceAll(string(text), "\n", "\r\n")), entry, uint8(1))
	}
	lists := []List{Policies, Upstreams, Costs, Scopes}
	f.Fuzz(func(t *testing.T, text, entry []byte, which uint8) {
		list := lists[int(which)%len(lists)]
		old, oldErr := config.Parse(text, "f")
		r, err := added(text, list, string(entry))
		if err != nil {
			whole(t, err)
			return
		}
		if _, err := config.Parse(r.After, "f"); err != nil {
			t.Fatalf("the result does not load: %v\n%q", err, r.After)
		}
		id := r.ID
		if list == Costs || list == Scopes {
			id = strings.Trim(id[strings.IndexByte(id, '['):], "[]")
		}
		back, err := removed(r.After, list, id)
		if err != nil {
			if oldErr == nil && !errors.Is(err, ErrShape) && !errors.Is(err, ErrAlias) {
				t.Fatalf("what was added cannot be removed: %v\n%q", err, r.After)
			}
			return
		}
		if oldErr == nil && (!reflect.DeepEqual(old.Upstreams, back.New.Upstreams) && len(old.Upstreams)+len(back.New.Upstreams) > 0 || old.Session.Agent != back.New.Session.Agent ||
			!slices.Equal(old.Engine.Rules(), back.New.Engine.Rules()) || len(old.Ruleset.Costs) != len(back.New.Ruleset.Costs) || len(old.Ruleset.Scopes) != len(back.New.Ruleset.Scopes)) {
			t.Fatalf("it is not as it was:\n%q\n%q", text, back.After)
		}
	})
}

// whole checks that a refusal says something.
func whole(t *testing.T, err error) {
	t.Helper()
	if problems, ok := errors.AsType[config.Problems](err); ok {
		if len(problems) == 0 {
			t.Error("no problem is told")
		}
		for _, p := range problems {
			if p.File == "" || p.Message == "" || p.Line < 0 || p.Column < 0 {
				t.Errorf("%+v", p)
			}
		}
	}
	if strings.TrimSpace(err.Error()) == "" {
		t.Error("the error is empty")
	}
}
