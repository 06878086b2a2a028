package policy

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// reads are what of a call the value of a condition depends on, as far as its text shows.
type reads struct {
	fields []string // members of args, by name
	names  []string // what tool is compared with
	more   bool     // args or tool otherwise, the cost or the clock
}

func readsOf(checked *cel.Ast) (r reads) {
	plain := map[int64]bool{} // the identifiers that are in fields and names
	field := func(args ast.Expr, name string) {
		if ident(args) == "args" {
			r.fields, plain[args.ID()] = append(r.fields, name), true
		}
	}
	compared := func(tool ast.Expr, with ...ast.Expr) {
		names, ok := literals(with)
		if ident(tool) == "tool" && ok {
			r.names, plain[tool.ID()] = append(r.names, names...), true
		}
	}
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.SelectKind:
			field(e.AsSelect().Operand(), e.AsSelect().FieldName())
		case ast.CallKind:
			call := e.AsCall()
			if len(call.Args()) != 2 {
				return
			}
			left, right := call.Args()[0], call.Args()[1]
			switch call.FunctionName() {
			case operators.Index:
				if names, ok := literals([]ast.Expr{right}); ok {
					field(left, names[0])
				}
			case operators.Equals, operators.NotEquals:
				compared(left, right)
				compared(right, left)
			case operators.In:
				if names, ok := literals([]ast.Expr{left}); ok {
					field(right, names[0])
				}
				if right.Kind() == ast.ListKind {
					compared(left, right.AsList().Elements()...)
				}
			}
		case ast.IdentKind: // a loop's own variable of that name is taken for it: that only refuses more
			r.more = r.more || slices.Contains([]string{"args", "tool", "cost_usd", "now"}, e.AsIdent()) && !plain[e.ID()]
		case ast.UnspecifiedExprKind, ast.ComprehensionKind, ast.ListKind, ast.LiteralKind, ast.MapKind, ast.StructKind:
		}
	}))
	return r
}

// ident returns the name that an expression is; "" if it is none.
func ident(e ast.Expr) string {
	if e.Kind() != ast.IdentKind {
		return ""
	}
	return e.AsIdent()
}

// literals returns the texts that these expressions are, if they all are.
func literals(list []ast.Expr) (texts []string, ok bool) {
	for _, e := range list {
		if e.Kind() != ast.LiteralKind {
			return nil, false
		}
		text, ok := e.AsLiteral().(types.String)
		if !ok {
			return nil, false
		}
		texts = append(texts, string(text))
	}
	return texts, true
}

// awaits reports whether a condition is about arguments alone of which none is given.
func (c *condition) awaits(a *arguments) bool {
	given, ok := a.value().(*object)
	if !ok || c.reads.more || len(c.reads.fields) == 0 {
		return false
	}
	return !slices.ContainsFunc(c.reads.fields, func(name string) bool {
		i, err := given.find(name)
		return i >= 0 || err != nil
	})
}

// spares reports whether a condition, which may be nil, does not hold for anything that
// begins with one of the heads, as it does not for the template c.
func (c *condition) spares(of *Call, heads []string) bool {
	if c == nil || c.reads.more || slices.ContainsFunc(c.reads.fields, func(name string) bool { return strings.EqualFold(name, "uri") }) ||
		slices.ContainsFunc(c.reads.names, func(name string) bool { return meet(heads, name) }) {
		return false
	}
	act := activation{call: *of, args: &arguments{bytes: of.Arguments}}
	defer act.close()
	holds, err := c.eval(&act)
	return err == nil && !holds
}
