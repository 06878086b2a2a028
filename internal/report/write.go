package report

import (
	_ "embed" // the page's frame
	"fmt"
	"html"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/haldir-mcp/haldir/policy"
)

// section is a part of the document: one table, or a word on why there is none.
type section struct {
	ID, Title, Intro string
	Head             []string
	Rows             [][]cell
	More             int // rows that were left out
	Empty            string
}

type cell struct {
	Text string
	Bad  bool
	Bar  int // percent, 0 for none
	Num  bool
}

// maxRows bounds a table: a report is to be read.
const maxRows = 100

func say(text string) cell           { return cell{Text: printable(text)} }
func number(n uint64) cell           { return cell{Text: fmt.Sprint(n), Num: true} }
func money(m policy.Micros) cell     { return cell{Text: m.String(), Num: true} }
func bad(n uint64) cell              { return cell{Text: fmt.Sprint(n), Num: true, Bad: n > 0} }
func at(t time.Time) cell            { return cell{Text: stamp(t)} }
func share(m, of policy.Micros) cell { return cell{Text: m.String(), Num: true, Bar: percent(m, of)} }

func percent(m, of policy.Micros) int {
	if of <= 0 || m <= 0 {
		return 0
	}
	return max(1, int(100*float64(m)/float64(of)))
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// longest bounds a text in a table.
const longest = 300

// printable makes a text of an agent or a server safe to show, and short enough.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if r := []rune(s); len(r) > longest {
		return string(r[:longest-1]) + "…"
	}
	return s
}

func (s *section) add(row ...cell) {
	if len(s.Rows) == maxRows {
		s.More++
		return
	}
	s.Rows = append(s.Rows, row)
}

// sections are the document, in its order.
func (r *Report) sections() []section {
	all := []section{r.callers(), r.uses(), r.refusals()}
	for _, by := range []By{ByDay, ByAgent, BySession, ByTool} {
		all = append(all, r.spend(by))
	}
	all = append(all,
		events("approvals", "Approvals", "What a person was asked to allow.", "Nobody was asked.", r.Approvals),
		events("anomalies", "Anomalies", "What was flagged and is no refusal.", "Nothing was flagged but refusals.", r.Anomalies),
		events("config", "Changes of the config", "By the SHA-256 of the file.", "The config did not change.", r.Config),
		events("pins", "What servers changed", "Definitions of tools that were pinned, changed or accepted.", "Nothing was pinned, and nothing pinned has changed.", r.Pins),
		events("sessions", "Sessions", "", "No session began or was revoked.", r.Sessions),
		events("ledger", "The ledger", "What was done to the record itself.", "Nothing was done to it.", r.Ledger),
	)
	return all
}

func (r *Report) callers() section {
	s := section{
		ID: "callers", Title: "Who called", Intro: "The client is what the host says of itself; nothing rests on it.", Empty: "Nobody called.",
		Head: []string{"Agent", "Client", "Sessions", "Calls", "Refused", "Errors", "Spent", "First", "Last"},
	}
	for _, c := range r.Callers {
		s.add(say(c.Agent), say(c.Client), number(uint64(c.Sessions)), number(c.Calls), bad(c.Denied), bad(c.Errors), money(c.Spent), at(c.First), at(c.Last)) //nolint:gosec // a length
	}
	return s
}

func (r *Report) uses() section {
	s := section{ID: "uses", Title: "Who called what", Empty: "Nothing was called.", Head: []string{"Agent", "Tool", "Calls", "Refused", "Errors", "Spent", "Last"}}
	for _, u := range r.Uses {
		s.add(say(u.Agent), say(u.Tool), number(u.Calls), bad(u.Denied), bad(u.Errors), money(u.Spent), at(u.Last))
	}
	return s
}

func (r *Report) refusals() section {
	s := section{
		ID: "refusals", Title: "Refusals by policy", Empty: "Nothing was refused.",
		Intro: "Refused: the rule was the one reported. Also: it would have refused as well. Shadow: it would have refused, were it enforced.",
		Head:  []string{"Policy", "Rule", "Refused", "Also", "Shadow", "Last", "The last reason"},
	}
	for _, f := range r.Refusals {
		s.add(say(f.Policy), say(f.Rule), bad(f.Denied), number(f.Also), number(f.Shadow), at(f.Last), say(f.Reason))
	}
	return s
}

func (r *Report) spend(by By) section {
	s := section{ID: "spend-" + string(by), Title: "Spend by " + string(by), Empty: "Nothing was spent.", Head: []string{strings.ToUpper(string(by)[:1]) + string(by)[1:], "Calls", "Spent"}}
	if by == ByDay {
		s.Intro = "Days of UTC."
	}
	most := policy.Micros(0)
	for _, row := range r.Spend[by] {
		most = max(most, row.Spent)
	}
	for _, row := range r.Spend[by] {
		if row.Spent > 0 {
			s.add(say(row.Key), number(row.Calls), share(row.Spent, most))
		}
	}
	return s
}

func events(id, title, intro, empty string, list Events) section {
	s := section{ID: id, Title: title, Intro: intro, Empty: empty, Head: []string{"Record", "Time", "Status", "What", "By", "Reason"}}
	for _, e := range list.List {
		who := e.Agent
		if e.Session != "" {
			who = strings.TrimPrefix(who+" "+e.Session, " ")
		}
		what := e.What
		if e.Approval != "" {
			what = strings.TrimPrefix(what+" ("+e.Approval+")", " ")
		}
		s.add(number(e.Seq), at(e.Time), say(e.Status), say(what), say(who), say(e.Text))
	}
	s.More = list.Count - len(s.Rows)
	return s
}

// fact is a line of the summary.
type fact struct {
	Name, Value string
	Bad         bool
}

func (r *Report) facts() []fact {
	from, to := stamp(r.Since), stamp(r.Until)
	if from == "" {
		from = "the first record"
	}
	if to == "" {
		to = stamp(r.Generated)
	}
	list := []fact{{Name: "Period", Value: from + " to " + to}}
	if r.Session != "" {
		list = append(list, fact{Name: "Session", Value: printable(r.Session)})
	}
	if r.FirstSeq > 0 {
		list = append(list, fact{Name: "Records", Value: fmt.Sprintf("%d to %d", r.FirstSeq, r.LastSeq)})
	}
	list = append(list,
		fact{Name: "Calls let through", Value: fmt.Sprint(r.Total.Calls)},
		fact{Name: "Calls refused", Value: fmt.Sprint(r.Total.Denied), Bad: r.Total.Denied > 0},
		fact{Name: "Spent", Value: r.Total.Spent.String()},
	)
	var names []string
	for name := range r.Statuses {
		names = append(names, name)
	}
	slices.Sort(names)
	var parts []string
	for _, name := range names {
		parts = append(parts, fmt.Sprintf("%s %d", printable(name), r.Statuses[name]))
	}
	if len(parts) > 0 {
		list = append(list, fact{Name: "By status", Value: strings.Join(parts, ", ")})
	}
	return append(list, fact{Name: "People asked", Value: fmt.Sprint(r.Approvals.Count)})
}

func (r *Report) integrity() []fact {
	i := r.Integrity
	list := []fact{{Name: "Chain", Value: "intact: every record has the hash that the next one names, and no number is missing"}}
	if !i.Intact {
		list[0] = fact{Name: "Chain", Value: "NOT INTACT: " + printable(i.Damage), Bad: true}
	}
	signed := "none"
	if i.Checkpoints > 0 {
		signed = fmt.Sprintf("%d match, the last of %s; %d records are under it", i.Checkpoints, stamp(i.SignedAt), i.Signed)
	}
	list = append(list, fact{Name: "Records verified", Value: fmt.Sprint(i.Records)}, fact{Name: "Signed checkpoints", Value: signed})
	if i.Pruned > 0 {
		list = append(list, fact{Name: "Not kept any more", Value: fmt.Sprintf("%d older records, which were signed before they were pruned", i.Pruned)})
	}
	if i.Head != "" {
		list = append(list, fact{Name: "Head", Value: i.Head})
	}
	return list
}

// escaped makes a text safe in Markdown and in a cell of a table.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune("\\`*_{}[]<>#|~&", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Markdown writes the report.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# haldir audit report\n\nMade at %s by haldir %s.\n\n", stamp(r.Generated), escaped(r.Version))
	facts := func(list []fact) {
		b.WriteString("| | |\n|---|---|\n")
		for _, f := range list {
			value := escaped(f.Value)
			if f.Bad {
				value = "**" + value + "**"
			}
			fmt.Fprintf(&b, "| %s | %s |\n", f.Name, value)
		}
	}
	b.WriteString("## Summary\n\n")
	facts(r.facts())
	b.WriteString("\n## Integrity\n\n")
	facts(r.integrity())
	for _, s := range r.sections() {
		fmt.Fprintf(&b, "\n## %s\n\n", s.Title)
		if len(s.Rows) == 0 {
			b.WriteString(s.Empty + "\n")
			continue
		}
		if s.Intro != "" {
			b.WriteString(s.Intro + "\n\n")
		}
		b.WriteString("| " + strings.Join(s.Head, " | ") + " |\n|")
		for i := range s.Head {
			if s.Rows[0][i].Num {
				b.WriteString("--:|")
			} else {
				b.WriteString("---|")
			}
		}
		b.WriteByte('\n')
		for _, row := range s.Rows {
			b.WriteByte('|')
			for _, c := range row {
				fmt.Fprintf(&b, " %s |", escaped(c.Text))
			}
			b.WriteByte('\n')
		}
		if s.More > 0 {
			fmt.Fprintf(&b, "\nand %d more.\n", s.More)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

//go:embed frame.html
var frame string

// HTML writes the report as one page that needs nothing else. It does without html/template:
// a program that has that cannot leave out what it does not call, and is a fifth larger.
// What is not a constant here is a text between tags, and escaped as such.
func (r *Report) HTML(w io.Writer) error {
	var b strings.Builder
	verdict, class := "The record is intact", "good"
	if !r.Integrity.Intact {
		verdict, class = "The record is NOT intact", "bad"
	}
	generated := html.EscapeString(stamp(r.Generated))
	fmt.Fprintf(&b, "<header>\n<h1>haldir audit report</h1>\n<p>Made at %s by haldir %s.</p>\n<div class=\"verdict %s\">%s</div>\n</header>\n",
		generated, html.EscapeString(r.Version), class, verdict)
	sections := r.sections()
	b.WriteString("<nav aria-label=\"Contents\"><ul>\n<li><a href=\"#summary\">Summary</a></li>\n<li><a href=\"#integrity\">Integrity</a></li>\n")
	for _, s := range sections {
		fmt.Fprintf(&b, "<li><a href=\"#%s\">%s</a></li>\n", s.ID, html.EscapeString(s.Title))
	}
	b.WriteString("</ul></nav>\n<main>\n")
	factsHTML(&b, "summary", "Summary", r.facts())
	factsHTML(&b, "integrity", "Integrity", r.integrity())
	for _, s := range sections {
		s.html(&b)
	}
	b.WriteString("</main>\n")
	_, err := strings.NewReplacer("TITLE", generated, "BODY", b.String()).WriteString(w, frame)
	return err
}

func factsHTML(b *strings.Builder, id, title string, list []fact) {
	fmt.Fprintf(b, "<section aria-labelledby=\"%s\"><h2 id=\"%[1]s\">%s</h2>\n<div class=\"scroll\"><table class=\"facts\"><tbody>\n", id, title)
	for _, f := range list {
		fmt.Fprintf(b, "<tr><th scope=\"row\">%s</th><td%s>%s</td></tr>\n", f.Name, classes(false, f.Bad), html.EscapeString(f.Value))
	}
	b.WriteString("</tbody></table></div>\n</section>\n")
}

func (s *section) html(b *strings.Builder) {
	fmt.Fprintf(b, "<section aria-labelledby=\"%s\"><h2 id=\"%[1]s\">%s</h2>\n", s.ID, html.EscapeString(s.Title))
	defer b.WriteString("</section>\n")
	if len(s.Rows) == 0 {
		fmt.Fprintf(b, "<p>%s</p>\n", html.EscapeString(s.Empty))
		return
	}
	if s.Intro != "" {
		fmt.Fprintf(b, "<p>%s</p>\n", html.EscapeString(s.Intro))
	}
	b.WriteString("<div class=\"scroll\"><table><thead><tr>")
	for i, head := range s.Head {
		fmt.Fprintf(b, "<th scope=\"col\"%s>%s</th>", classes(s.Rows[0][i].Num, false), html.EscapeString(head))
	}
	b.WriteString("</tr></thead>\n<tbody>\n")
	for _, row := range s.Rows {
		b.WriteString("<tr>")
		for _, c := range row {
			fmt.Fprintf(b, "<td%s>%s", classes(c.Num, c.Bad), html.EscapeString(c.Text))
			if c.Bar > 0 {
				fmt.Fprintf(b, "<span class=\"bar\" style=\"width: %d%%\"></span>", c.Bar)
			}
			b.WriteString("</td>")
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</tbody></table></div>\n")
	if s.More > 0 {
		fmt.Fprintf(b, "<p>and %d more.</p>\n", s.More)
	}
}

// classes is the attribute of a cell, with the space before it.
func classes(num, bad bool) string {
	switch {
	case num && bad:
		return ` class="num bad"`
	case num:
		return ` class="num"`
	case bad:
		return ` class="bad"`
	}
	return ""
}
