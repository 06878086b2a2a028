package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// condition is a compiled When.
type condition struct {
	text    string
	program cel.Program
	bounded bool // its evaluation is counted
	now     bool // it reads the clock, so its value is not known before the transaction
	who     bool // it reads the session or the agent
	args    bool // it reads the arguments, or what they say that the call costs
	reads   reads
}

// What bounds one evaluation, in cel-go's units of about one a basic operation:
// arguments are the agent's, and a condition that compares each part of them
// with each other must not be a way to stop haldir. One pass over a message of
// the default size limit stays below maxCost. A condition that reads the clock is
// evaluated while every other window waits for the ledger.
const (
	maxCost        = 5_000_000
	maxCostWaiting = 1_000_000
)

type celEnv = cel.Env

func newCELEnv() (*cel.Env, error) {
	return cel.NewEnv(
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
		cel.Function("clean", cel.Overload("clean_string", []*cel.Type{cel.StringType}, cel.StringType,
			cel.UnaryBinding(celClean))),
		cel.Function("host", cel.Overload("host_string", []*cel.Type{cel.StringType}, cel.StringType,
			cel.UnaryBinding(celHost))),
		cel.Function("words", cel.Overload("words_string", []*cel.Type{cel.StringType}, cel.ListType(cel.StringType),
			cel.UnaryBinding(celWords))),
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
	checked, issues := c.cel.Compile(text)
	if issues != nil && issues.Err() != nil {
		for _, e := range issues.Errors() {
			c.errs = append(c.errs, &RuleError{
				List: c.list, Index: c.index, Field: "when", Item: -1,
				Line: e.Location.Line(), Column: e.Location.Column() + 1, Err: errors.New(e.Message),
			})
		}
		return nil
	}
	// What is wrong with the whole is reported at its beginning.
	whole := func(err error) {
		c.errs = append(c.errs, &RuleError{List: c.list, Index: c.index, Field: "when", Item: -1, Line: 1, Column: 1, Err: err})
	}
	if checked.OutputType() != cel.BoolType {
		whole(fmt.Errorf("must be true or false, but it is of type %s", checked.OutputType()))
		return nil
	}
	l := look(checked)
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	switch {
	case l.now:
		options = append(options, cel.CostLimit(maxCostWaiting), cel.CostTracking(effort{}))
	case l.loops:
		options = append(options, cel.CostLimit(maxCost), cel.CostTracking(effort{}))
	}
	program, err := c.cel.Program(checked, options...)
	if err != nil {
		whole(err)
		return nil
	}
	return &condition{text: text, program: program, bounded: l.now || l.loops, now: l.now, who: l.who, args: l.args, reads: readsOf(checked)}
}

// looks are what the text of a condition uses. One that does not loop, that is go
// through a list or an object or match a pattern, takes no longer than its
// arguments are long, and needs no bound, which would cost more than most
// conditions do.
type looks struct{ loops, now, who, args bool }

func look(a *cel.Ast) (l looks) {
	ast.PreOrderVisit(a.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		l.loops = l.loops || e.Kind() == ast.ComprehensionKind || e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "matches"
		if e.Kind() == ast.IdentKind { // a loop's own variable of that name is taken for it: that only costs time
			l.now = l.now || e.AsIdent() == "now"
			l.who = l.who || e.AsIdent() == "session" || e.AsIdent() == "agent"
			l.args = l.args || e.AsIdent() == "args" || e.AsIdent() == "cost_usd"
		}
	}))
	return l
}

// effort tells cel-go what functions cost that it thinks cheaper than they are,
// and our own.
type effort struct{}

// CallCost implements [cost.ActualCostEstimator].
func (effort) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	units := uint64(1)
	switch function {
	case operators.In:
		units += length(args[1])
		if _, ok := args[1].(*object); ok {
			units = 1 // it has an index
		}
	case operators.Equals, operators.NotEquals:
		units += min(length(args[0]), length(args[1]))
	case operators.Add: // a text that is put together is memory
		if _, list := result.(traits.Lister); !list {
			units += length(result)
		}
	case "matches":
		units += length(args[0]) / 3 * (1 + length(args[1])/64)
	case "strings":
		if l, ok := result.(*texts); ok {
			units += l.walked
		}
	case "words":
		units += length(args[0])
	case "under", "clean":
		units = 10 + length(args[0])/8
	case "host": // IDNA is slow, and is for the host only
		units = 50 + length(args[0])/8 + min(length(args[0]), maxHost)
	case "size", "int", "uint", "double", "string", "bytes", "timestamp", "duration":
		units += length(args[0]) / 8
	default:
		return nil
	}
	return &units
}

// length returns the bytes of a text and the elements of a list, those of lists
// in it included; 1 for anything else.
func length(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(len(v))
	case types.Bytes:
		return uint64(len(v))
	case *object:
		return uint64(v.size())/64 + uint64(len(v.members)) //nolint:gosec // sizes are not negative
	case traits.Lister:
		n := uint64(1)
		for it := v.Iterator(); it.HasNext() == types.True; {
			n += length(it.Next())
		}
		return n
	}
	return 1
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
	a.args.unreadable = nil
	var vars any = a
	if !c.bounded {
		if vars, err = a.shared(); err != nil {
			return false, err
		}
	}
	v, _, err := c.program.Eval(vars)
	if a.args.unreadable != nil {
		return false, a.args.unreadable
	}
	if err != nil {
		return false, plainly(err)
	}
	b, ok := v.(types.Bool)
	if !ok {
		return false, fmt.Errorf("its value is no boolean but %v", v.Type())
	}
	return bool(b), nil
}

// plainly turns an error of cel-go into words for a person.
func plainly(err error) error {
	text := err.Error()
	if key, ok := strings.CutPrefix(text, "no such key: "); ok {
		key = shorten(key)
		return fmt.Errorf("there is no %q (test it first: has(args.%s))", key, key)
	}
	if strings.Contains(text, "actual cost limit exceeded") {
		return errors.New("the arguments are too large for it")
	}
	return errors.New(shorten(text))
}

// shorten bounds a reason: it may quote arguments of any length.
func shorten(s string) string {
	if len(s) <= 200 {
		return s
	}
	return strings.ToValidUTF8(s[:200], "") + "…"
}

// activation gives a condition its variables, none of them before it is read.
type activation struct {
	call Call
	args *arguments
	now  time.Time
	cost Micros
	// frame serves all conditions of one decision whose evaluation is not counted:
	// to set one up takes as long as to evaluate a simple condition.
	frame *interpreter.ExecutionFrame
}

// shared returns what such conditions are evaluated in, until close.
func (a *activation) shared() (_ *interpreter.ExecutionFrame, err error) {
	if a.frame == nil {
		a.frame, err = interpreter.NewExecutionFrame(a)
	}
	return a.frame, err
}

func (a *activation) close() {
	if a.frame != nil {
		a.frame.Close()
		a.frame = nil
	}
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
	walked := uint64(0)
	var walk func(v ref.Val) *types.Err
	walk = func(v ref.Val) *types.Err {
		walked++
		switch v := v.(type) {
		case *types.Err:
			return v
		case types.String:
			out = append(out, string(v))
		case *types.Optional:
			if v.HasValue() {
				return walk(v.GetValue())
			}
		case *object:
			for i, m := range v.members {
				out = append(out, m.key)
				if err := walk(v.at(i)); err != nil {
					return err
				}
			}
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
	return &texts{types.NewStringList(types.DefaultTypeAdapter, out), walked}
}

// texts is a list of strings that knows how many values it was searched from.
type texts struct {
	traits.Lister
	walked uint64
}

func celUnder(p, dir ref.Val) ref.Val {
	s, ok1 := p.(types.String)
	d, ok2 := dir.(types.String)
	if !ok1 || !ok2 {
		return types.MaybeNoSuchOverloadErr(p)
	}
	below, undecided := under(string(s), string(d))
	if undecided {
		return types.WrapErr(errAnywhere)
	}
	return types.Bool(below)
}

func celClean(p ref.Val) ref.Val {
	s, ok := p.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(p)
	}
	cleaned, ok := cleanPath(string(s))
	if !ok {
		return types.WrapErr(errAnywhere)
	}
	return types.String(cleaned)
}

func celHost(u ref.Val) ref.Val {
	s, ok := u.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(u)
	}
	h, err := urlHost(string(s))
	if err != nil {
		return types.WrapErr(err)
	}
	return types.String(h)
}

var errAnywhere = errors.New("a path climbs out of its start, or is read in two ways, and could be anywhere")
