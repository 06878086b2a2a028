// Package metrics holds counters, gauges and histograms with labels, and writes them as
// Prometheus reads them. It is pure: no clock, no I/O, nothing global.
//
// The names of tools come from servers that are not trusted, so that there may be any number
// of them: [Names] bounds how many become labels.
package metrics

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Kind is what a family's numbers mean.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota // only grows
	Gauge
	Histogram
)

func (k Kind) String() string { return [...]string{"counter", "gauge", "histogram"}[k] }

// Seconds are the upper bounds of histograms of durations.
var Seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// Set is some families. Its zero value is empty; it is safe for concurrent use.
type Set struct {
	mu   sync.Mutex
	list []*Family
}

// Family is the series of one name. It is safe for concurrent use.
type Family struct {
	Name, Help, Unit string
	Kind             Kind
	Labels           []string
	Bounds           []float64 // of a histogram

	set    *Set
	series map[string]*Series
}

// Series are the numbers for one value of each label.
type Series struct {
	Values []string
	Value  float64 // of a histogram, the sum
	Count  uint64
	Counts []uint64 // by bucket; one more than bounds
}

// Add makes a family.
func (s *Set) Add(kind Kind, name, unit, help string, labels ...string) *Family {
	f := &Family{Name: name, Help: help, Unit: unit, Kind: kind, Labels: labels, set: s, series: map[string]*Series{}}
	if kind == Histogram {
		f.Bounds = Seconds
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, f)
	return f
}

func (f *Family) of(values []string) *Series {
	key := strings.Join(values, "\x00")
	x := f.series[key]
	if x == nil {
		x = &Series{Values: slices.Clone(values)}
		if f.Kind == Histogram {
			x.Counts = make([]uint64, len(f.Bounds)+1)
		}
		f.series[key] = x
	}
	return x
}

// Count adds to a counter. What would make it smaller is left out.
func (f *Family) Count(n float64, values ...string) {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	if x := f.of(values); n > 0 {
		x.Value += n
	}
}

// Put sets a gauge.
func (f *Family) Put(n float64, values ...string) {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	f.of(values).Value = n
}

// Observe adds to a histogram.
func (f *Family) Observe(n float64, values ...string) {
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	x := f.of(values)
	i, _ := slices.BinarySearch(f.Bounds, n)
	x.Counts[i]++
	x.Count++
	x.Value += n
}

// Each calls do with every family and a copy of its series, in order.
func (s *Set) Each(do func(f *Family, list []Series)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.list {
		list := make([]Series, 0, len(f.series))
		for _, x := range f.series {
			c := *x
			c.Counts = slices.Clone(x.Counts)
			list = append(list, c)
		}
		slices.SortFunc(list, func(a, b Series) int { return slices.CompareFunc(a.Values, b.Values, cmp.Compare[string]) })
		do(f, list)
	}
}

// ContentType is that of [Set.Text].
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Text returns the set in the text format of Prometheus, version 0.0.4.
func (s *Set) Text() []byte {
	var b []byte
	s.Each(func(f *Family, list []Series) {
		b = append(b, "# HELP "+f.Name+" "+strings.NewReplacer(`\`, `\\`, "\n", `\n`).Replace(f.Help)+"\n# TYPE "+f.Name+" "+f.Kind.String()+"\n"...)
		for _, x := range list {
			if f.Kind != Histogram {
				b = f.line(b, "", x.Values, "", x.Value)
				continue
			}
			sum := uint64(0)
			for i, n := range x.Counts {
				sum += n
				le := "+Inf"
				if i < len(f.Bounds) {
					le = strconv.FormatFloat(f.Bounds[i], 'g', -1, 64)
				}
				b = f.line(b, "_bucket", x.Values, le, float64(sum))
			}
			b = f.line(b, "_sum", x.Values, "", x.Value)
			b = f.line(b, "_count", x.Values, "", float64(x.Count))
		}
	})
	return b
}

func (f *Family) line(b []byte, suffix string, values []string, le string, n float64) []byte {
	b = append(append(b, f.Name...), suffix...)
	escape := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	var pairs []string
	for i, v := range values {
		pairs = append(pairs, f.Labels[i]+`="`+escape.Replace(v)+`"`)
	}
	if le != "" {
		pairs = append(pairs, `le="`+le+`"`)
	}
	if len(pairs) > 0 {
		b = append(b, "{"+strings.Join(pairs, ",")+"}"...)
	}
	b = append(b, ' ')
	if n == math.Trunc(n) && math.Abs(n) < 1<<53 {
		b = strconv.AppendInt(b, int64(n), 10)
	} else {
		b = strconv.AppendFloat(b, n, 'g', -1, 64)
	}
	return append(b, '\n')
}

// Bounds of names that become labels.
const (
	maxNames = 500
	maxName  = 128 // bytes
)

// Other stands for every tool beyond the bound.
const Other = "other"

// Names bounds how many tools become labels. Its zero value is ready; it is safe for concurrent
// use.
type Names struct {
	mu   sync.Mutex
	seen map[string]bool
}

// Label is what a tool is called in labels: nothing if it is not known to anybody, since its
// name is then any text that an agent has sent; its kind alone if it is a resource, of which
// there is no end; [Other] for what comes after the first 500.
func (n *Names) Label(upstream, tool string, known bool) string {
	if !known || upstream == "" {
		return ""
	}
	if strings.HasPrefix(tool, "resource:") {
		return "resource"
	}
	tool = strings.ToValidUTF8(tool[:min(len(tool), maxName)], "")
	key := upstream + "/" + tool
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.seen[key] {
		if len(n.seen) >= maxNames {
			return Other
		}
		if n.seen == nil {
			n.seen = map[string]bool{}
		}
		n.seen[key] = true
	}
	return tool
}
