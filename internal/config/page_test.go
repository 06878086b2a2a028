package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTheConfigurationPage makes docs/configuration.md from the structs that read
// haldir.yaml and from the list of settings.
func TestTheConfigurationPage(t *testing.T) {
	const file = "../../docs/configuration.md"
	got := configurationPage()
	if f := flag.Lookup("update"); f != nil && f.Value.String() == "true" { // of golden_test.go
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/configuration.md is not what the code says (-page +code); write it anew with: go test ./internal/config -run TestTheConfigurationPage -update\n%s", diff)
	}
}

func configurationPage() string {
	p := &sheet{}
	p.text(`# Configuration

Made from the code; do not edit it by hand (` + "`go test ./internal/config -update`" + `).

This is every key of haldir.yaml. [haldir.yaml](../haldir.yaml) shows them at work,
[policies.md](policies.md) and [upstreams.md](upstreams.md) say what they mean at length.
` + "`haldir check`" + ` finds every mistake with its line and column; ` + "`haldir schema`" + ` prints a
JSON Schema for editors.

The file is looked for at ` + "`--config`" + `, then ` + "`HALDIR_CONFIG`" + `, then haldir/haldir.yaml in your
configuration directory: ~/.config on Linux, ~/Library/Application Support on macOS, %AppData%
on Windows. It is never looked for in the current directory.

An unknown key is a mistake, not something that is passed over. Names are values, never keys.`)
	p.section(2, "The file", "", reflect.TypeFor[document]())
	p.section(2, "session", "What a session grants.", reflect.TypeFor[sessionDoc]())
	p.section(2, "upstreams", "Each has a name, and either url or command. A text may refer to `${env:NAME}`, `${file:PATH}`,\n`${keyring:NAME}` and `${root}`; see [Secrets](upstreams.md#secrets).", reflect.TypeFor[upstreamDoc]())
	p.section(3, "auth", "", reflect.TypeFor[authDoc]())
	p.section(3, "tls", "", reflect.TypeFor[tlsDoc]())
	p.section(3, "timeouts", "", reflect.TypeFor[timeoutsDoc]())
	p.section(2, "costs", "Each has tools, and usd or from_argument. See [Costs](policies.md#costs).", reflect.TypeFor[costDoc]())
	p.section(2, "scopes", "See [Scopes](policies.md#scopes).", reflect.TypeFor[scopeDoc]())
	p.text("## policies\n\nThese keys each policy has. See [Policies](policies.md).")
	p.fields(reflect.TypeFor[policyDoc](), func(f reflect.StructField) bool { return f.Tag.Get("for") == "" })
	for _, name := range policyTypes {
		own := func(f reflect.StructField) bool { return slices.Contains(strings.Split(f.Tag.Get("for"), ","), name) }
		if !slices.ContainsFunc(reflect.VisibleFields(reflect.TypeFor[policyDoc]()), func(f reflect.StructField) bool { return own(f) && f.Tag.Get("alias") == "" }) {
			p.text("### " + name + "\n\nIt has no keys of its own.")
			continue
		}
		p.text("### " + name)
		p.about = name
		p.fields(reflect.TypeFor[policyDoc](), own)
		p.about = ""
	}
	p.section(3, "allowed_hours", "", reflect.TypeFor[hoursDoc]())
	p.section(2, "audit", "", reflect.TypeFor[auditDoc]())
	p.section(2, "log", "", reflect.TypeFor[logDoc]())
	p.text(`## Settings outside of the file

Some settings may come from a flag or a variable of the environment as well. A flag goes before
a variable, a variable before the file, the file before the default. There are no others, and
none of them is a policy.`)
	fmt.Fprint(&p.b, "| setting | variable | flag | default | meaning |\n|---|---|---|---|---|\n")
	for _, s := range AllSettings() {
		name, flag := s.Key, ""
		if name == "" {
			name = "not in the file"
		}
		if s.Flag != "" {
			flag = "`--" + s.Flag + "`"
		}
		fmt.Fprintf(&p.b, "| %s | `%s` | %s | %s | %s |\n", name, s.Env, flag, s.Default, strings.ReplaceAll(s.Doc, "|", `\|`))
	}
	return p.b.String()
}

// sheet is a page that is written.
type sheet struct {
	b     strings.Builder
	about string // the type of policy whose keys are written
}

func (p *sheet) text(s string) {
	p.b.WriteString(strings.TrimSpace(s) + "\n\n")
}

func (p *sheet) section(level int, name, words string, t reflect.Type) {
	p.text(strings.Repeat("#", level) + " " + name)
	if words != "" {
		p.text(words)
	}
	p.fields(t, func(reflect.StructField) bool { return true })
}

// fields writes the table of a struct's keys, without old spellings.
func (p *sheet) fields(t reflect.Type, wanted func(reflect.StructField) bool) {
	fmt.Fprint(&p.b, "| key | is | meaning |\n|---|---|---|\n")
	for f := range t.Fields() {
		if f.Tag.Get("alias") != "" || !wanted(f) {
			continue
		}
		name := "`" + f.Tag.Get("yaml") + "`"
		if strings.HasPrefix(f.Tag.Get("jsonschema"), "required") {
			name += " (required)"
		}
		fmt.Fprintf(&p.b, "| %s | %s | %s |\n", name, form(f), strings.ReplaceAll(p.meaning(f), "|", `\|`))
	}
	p.b.WriteString("\n")
}

// meaning is what a key's doc says. A doc that is about several types of policies says for
// each what it is: "a: this. b, c: that."
func (p *sheet) meaning(f reflect.StructField) string {
	doc := f.Tag.Get("doc")
	if p.about == "" {
		return doc
	}
	for _, m := range regexp.MustCompile(`([a-z_]+(?:, [a-z_]+)*): (.*?[.])(?: ([a-z_]+: .*))?$`).FindAllStringSubmatch(doc, -1) {
		for ; m != nil; m = regexp.MustCompile(`^([a-z_]+(?:, [a-z_]+)*): (.*?[.])(?: ([a-z_]+: .*))?$`).FindStringSubmatch(m[3]) {
			if slices.Contains(strings.Split(m[1], ", "), p.about) {
				doc = m[2]
			}
		}
	}
	return doc
}

// form says how the value of a key is written.
func form(f reflect.StructField) string {
	t := f.Type
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var words []string
	for part := range strings.SplitSeq(f.Tag.Get("jsonschema"), ",") {
		if word, ok := strings.CutPrefix(part, "enum="); ok {
			words = append(words, word)
		}
	}
	list := ""
	if t.Kind() == reflect.Slice {
		list, t = "list of ", t.Elem()
	}
	switch {
	case len(words) > 0:
		return list + strings.Join(words, ", ")
	case t == reflect.TypeFor[duration]():
		return "duration"
	case t == reflect.TypeFor[usd]():
		return "amount"
	case t == reflect.TypeFor[day]():
		return list + "days"
	case t == reflect.TypeFor[clock]():
		return "time of day"
	case t.Kind() == reflect.Struct && list != "":
		return list + "mappings"
	case t.Kind() == reflect.Struct:
		return "mapping"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "number"
	case list != "":
		return list + "texts"
	}
	return "text"
}
