package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// condition is a compiled When. It has two programs: counting what an
// evaluation costs takes longer than most evaluations, so that is done only for
// arguments large enough to be used as a weapon.
type condition struct {
	program cel.Program
	bounded cel.Program
}

// largeArguments is the size in bytes from which evaluation is bounded, and
// maxCost the bound in cel-go's units (about one a basic operation).
const (
	largeArguments = 4 << 10
	maxCost        = 5_000_000
)

type celEnv = cel.Env

func newCELEnv() (*cel.Env, error) {
	return cel.NewEnv(
		cel.CustomTypeAdapter(jsonAdapter{}),
		cel.OptionalTypes(),
		cel.CrossTypeNumericComparisons(true),
		cel.Variable("args", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("tool", cel.StringType),
		cel.Variable("upstream", cel.StringType),
		cel.Variable("agent", cel.StringType),
		cel.Variable("session", cel.StringType),
		cel.Variable("cost_usd", cel.DoubleType),
		cel.Variable("now", cel.TimestampType),
		cel.Function("strings", cel.Overload("strings_dyn", []*cel.Type{cel.DynType}, cel.ListType(cel.StringType),
			cel.UnaryBinding(celStrings))),
		cel.Function("under", cel.Overload("under_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(celUnder))),
	)
}

// condition compiles a When; it returns nil after a mistake.
func (c *compiler) condition(text string) *condition {
	if c.cel == nil {
		env, err := newCELEnv()
		if err != nil {
			c.fail("when", -1, err)
			return nil
		}
		c.cel = env
	}
	ast, issues := c.cel.Compile(text)
	if issues != nil && issues.Err() != nil {
		for _, e := range issues.Errors() {
			c.errs = append(c.errs, &RuleError{
				List: c.list, Index: c.index, Field: "when", Item: -1,
				Line: e.Location.Line(), Column: e.Location.Column() + 1, Err: errors.New(e.Message),
			})
		}
		return nil
	}
	if ast.OutputType() != cel.BoolType {
		c.fail("when", -1, fmt.Errorf("must be true or false, but it is of type %s", ast.OutputType()))
		return nil
	}
	out := &condition{}
	var err error
	if out.program, err = c.cel.Program(ast, cel.EvalOptions(cel.OptOptimize)); err != nil {
		c.fail("when", -1, err)
		return nil
	}
	if out.bounded, err = c.cel.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost)); err != nil {
		c.fail("when", -1, err)
		return nil
	}
	return out
}

// eval returns the value of the condition; the error says why it has none.
func (c *condition) eval(a *activation) (result bool, err error) {
	// cel-go recovers its own panics; a panic of ours in a binding must not
	// break the promise that Decide is total.
	defer func() {
		if r := recover(); r != nil {
			result, err = false, fmt.Errorf("internal error: %v", r)
		}
	}()
	program := c.program
	if len(a.args.raw) >= largeArguments {
		program = c.bounded
	}
	v, _, err := program.Eval(a)
	if err != nil {
		return false, plainly(err)
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("its value is no boolean but %v", v.Type())
	}
	return bool(b), nil
}

func plainly(err error) error {
	text := err.Error()
	if key, ok := strings.CutPrefix(text, "no such key: "); ok {
		return fmt.Errorf("there is no %q (test it first: has(args.%s))", key, key)
	}
	if strings.Contains(text, "actual cost limit exceeded") {
		return errors.New("the arguments are too large for it")
	}
	return errors.New(text)
}

// activation gives a condition its variables, none of them before it is read.
type activation struct {
	call *Call
	args *arguments
	now  time.Time
	cost Micros
}

// ResolveName implements [interpreter.Activation].
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "args":
		return a.args.value(), true
	case "tool":
		return a.call.Tool, true
	case "upstream":
		return a.call.Upstream, true
	case "agent":
		return a.call.Agent, true
	case "session":
		return a.call.Session, true
	case "cost_usd":
		return float64(a.cost) / float64(USD), true
	case "now":
		return types.Timestamp{Time: a.now.UTC()}, true
	}
	return nil, false
}

// Parent implements [interpreter.Activation].
func (a *activation) Parent() interpreter.Activation { return nil }

// celStrings returns every string in a value: values, elements and keys, since
// some tools take a map from path to content.
func celStrings(v ref.Val) ref.Val {
	var out []string
	var walk func(v ref.Val) *types.Err
	walk = func(v ref.Val) *types.Err {
		switch v := v.(type) {
		case *types.Err:
			return v
		case types.String:
			out = append(out, string(v))
		case traits.Mapper:
			for it := v.Iterator(); it.HasNext() == types.True; {
				key := it.Next()
				if s, ok := key.(types.String); ok {
					out = append(out, string(s))
				}
				if err := walk(v.Get(key)); err != nil {
					return err
				}
			}
		case traits.Lister:
			for it := v.Iterator(); it.HasNext() == types.True; {
				if err := walk(it.Next()); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(v); err != nil {
		return err
	}
	slices.Sort(out) // a map has no order; the same arguments must give the same list
	return types.NewStringList(types.DefaultTypeAdapter, out)
}

func celUnder(p, dir ref.Val) ref.Val {
	s, ok1 := p.(types.String)
	d, ok2 := dir.(types.String)
	if !ok1 || !ok2 {
		return types.MaybeNoSuchOverloadErr(p)
	}
	below, undecided := under(string(s), string(d))
	if undecided {
		return types.NewErr("the path %q climbs out of its start and could be anywhere", clip(string(s)))
	}
	return types.Bool(below)
}
