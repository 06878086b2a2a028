package clients

import (
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// Deny returns the text of a file of Claude Code's settings with rules that deny, behind
// those that it has, and which of them are new. nil is the text of no file.
func Deny(path string, data []byte, rules []string) (after []byte, fresh []string, err error) {
	t, err := parse(path, data)
	if err != nil {
		return nil, nil, err
	}
	list := func(rules []string, margin, unit string) string {
		sep := t.eol + margin + unit
		return "[" + sep + strings.Join(quoted(rules), ","+sep) + t.eol + margin + "]"
	}
	const unit = "  "
	if t.root == nil {
		text := "{\n  \"permissions\": {\n    \"deny\": " + list(rules, unit+unit, unit) + "\n  }\n}\n"
		return t.edited([]splice{{0, len(t.body), text}}), rules, nil
	}
	root, deny, permissions, err := t.deny()
	if err != nil {
		return nil, nil, err
	}
	fresh = rules
	if deny != nil {
		fresh = slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return slices.Contains(elements(deny), r) })
	}
	if len(fresh) == 0 {
		return data, nil, nil
	}
	step := t.unit(t.root)
	outer := t.margin(t.root.StartOffset)
	switch {
	case deny != nil:
		after = t.edited(t.put(deny, quoted(fresh), step))
	case permissions != nil:
		after = t.edited(t.put(permissions, []string{`"deny": ` + list(fresh, outer+step+step, step)}, step))
	default:
		entry := `"permissions": {` + t.eol + outer + step + step + `"deny": ` + list(fresh, outer+step+step, step) + t.eol + outer + step + "}"
		after = t.edited(t.put(root, []string{entry}, step))
	}
	_, err = parse(path, after)
	return after, fresh, err
}

// Undeny takes rules out again.
func Undeny(path string, data []byte, rules []string) ([]byte, error) {
	t, err := parse(path, data)
	if err != nil || t.root == nil {
		return data, err
	}
	_, deny, _, err := t.deny()
	if err != nil || deny == nil {
		return data, err
	}
	all := elements(deny)
	after := t.edited(t.take(deny, func(i int) bool { return slices.Contains(rules, all[i]) }, nil))
	_, err = parse(path, after)
	return after, err
}

// deny finds the rules that deny, and what they are in; nil for what is not there.
func (t *text) deny() (root, deny, permissions *hujson.Value, err error) {
	o := object(t.root)
	if o == nil {
		return nil, nil, nil, t.problem(t.root.StartOffset, "an object must stand here")
	}
	m, err := t.member(o, "permissions")
	if err != nil || m == nil {
		return t.root, nil, nil, err
	}
	in := object(&m.Value)
	if in == nil {
		return nil, nil, nil, t.problem(m.Value.StartOffset, "permissions must be an object")
	}
	d, err := t.member(in, "deny")
	if err != nil || d == nil {
		return t.root, nil, &m.Value, err
	}
	if _, ok := d.Value.Value.(*hujson.Array); !ok {
		return nil, nil, nil, t.problem(d.Value.StartOffset, "deny must be a list")
	}
	return t.root, &d.Value, &m.Value, nil
}

// elements are those of a list, "" for what is no text.
func elements(v *hujson.Value) (out []string) {
	if a, ok := v.Value.(*hujson.Array); ok {
		for i := range a.Elements {
			s, _ := str(&a.Elements[i])
			out = append(out, s)
		}
	}
	return out
}

func quoted(texts []string) (out []string) {
	for _, s := range texts {
		out = append(out, quote(s))
	}
	return out
}
