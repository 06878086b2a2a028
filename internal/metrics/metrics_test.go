package metrics_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/haldir-mcp/haldir/internal/metrics"
)

func TestPrometheusCanReadWhateverLabelsSay(t *testing.T) {
	var s metrics.Set
	c := s.Add(metrics.Counter, "c_total", "", "with a \\ and a\nline", "tool")
	h := s.Add(metrics.Histogram, "h_seconds", "", "")
	names := []string{"", `"quoted"`, "two\nlines", `\`, "ünï"}
	for _, n := range names {
		c.Count(1.5, n)
		c.Count(-1, n) // a counter never shrinks
	}
	for _, x := range []float64{0, .001, .3, 1e9} {
		h.Observe(x)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	got, err := parser.TextToMetricFamilies(bytes.NewReader(s.Text()))
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Text())
	}
	for _, m := range got["c_total"].Metric {
		if m.Counter.GetValue() != 1.5 {
			t.Errorf("%v", m)
		}
		names = removed(names, m.Label[0].GetValue())
	}
	if len(names) > 0 {
		t.Errorf("missing: %q", names)
	}
	x := got["h_seconds"].Metric[0].Histogram
	if x.GetSampleCount() != 4 || x.GetSampleSum() != 1e9+.301 || x.Bucket[0].GetCumulativeCount() != 2 || len(x.Bucket) != len(metrics.Seconds)+1 {
		t.Errorf("%v", x)
	}
}

func removed(list []string, s string) (left []string) {
	for _, x := range list {
		if x != s {
			left = append(left, x)
		}
	}
	return left
}

func TestThereIsABoundOnTools(t *testing.T) {
	var n metrics.Names
	labels := map[string]bool{}
	for i := range 2000 {
		labels[n.Label("evil", fmt.Sprintf("tool%d", i), true)] = true
		labels[n.Label("evil", fmt.Sprintf("resource:file:///%d", i), true)] = true
		labels[n.Label("evil", fmt.Sprintf("guess%d", i), false)] = true
	}
	if len(labels) != 503 || !labels[metrics.Other] || !labels["resource"] || !labels[""] {
		t.Errorf("%d labels", len(labels))
	}
	if n.Label("evil", "tool7", true) != "tool7" {
		t.Error("a tool that was known is not any more")
	}
}

func TestNamesAreSafeForConcurrentUse(t *testing.T) {
	var n metrics.Names
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				if label := n.Label("up", fmt.Sprintf("tool%d", i), true); label != fmt.Sprintf("tool%d", i) {
					t.Errorf("tool%d is %q", i, label)
				}
			}
		})
	}
	wg.Wait()
}
