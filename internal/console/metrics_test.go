package console_test

import (
	"bytes"
	"net/http"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape reads the metrics as Prometheus does.
func (w *world) scrape(key string) map[string]*dto.MetricFamily {
	w.t.Helper()
	a := w.do(key, "GET", "/metrics", "").want(http.StatusOK)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(bytes.NewReader(a.body))
	if err != nil {
		w.t.Fatalf("%v:\n%s", err, a.body)
	}
	return all
}

// value is that of the one series with these labels, in pairs; -1 if there is none.
func value(f *dto.MetricFamily, labels ...string) float64 {
	for _, m := range f.GetMetric() {
		same := len(m.GetLabel()) == len(labels)/2
		for i := 0; same && i < len(labels); i += 2 {
			l := m.GetLabel()[i/2]
			same = l.GetName() == labels[i] && l.GetValue() == labels[i+1]
		}
		if same {
			switch {
			case m.Counter != nil:
				return m.Counter.GetValue()
			case m.Histogram != nil:
				return float64(m.Histogram.GetSampleCount())
			}
			return m.Gauge.GetValue()
		}
	}
	return -1
}

func TestPrometheusReadsWhatTheLedgerAddsUpTo(t *testing.T) {
	w := start(t, "  - {type: deny, tools: [delete_database], id: no-deletion}\n  - {type: rate_limit, max_calls: 4, window: 1h, per: session, tools: [dns_lookup], id: slow}\n")
	all, metrics := w.key("all"), w.key("metrics:read")
	s := w.session(all, everything)
	w.call(all, s, "scan_domain", `{"domain":"example.com"}`).want(http.StatusOK)
	w.call(all, s, "scan_domain", `{"domain":"example.com"}`).want(http.StatusOK)
	w.call(all, s, "dns_lookup", `{"domain":"example.com"}`).want(http.StatusOK)
	w.call(all, s, "delete_database", `{}`).problem(http.StatusForbidden, "refused")
	w.call(all, s, "no_such_tool\\n", `{}`).problem(http.StatusNotFound, "refused")

	for range 2 { // the second goes on from the first
		got := w.scrape(metrics)
		for _, x := range []struct {
			family string
			want   float64
			labels []string
		}{
			{"haldir_calls_total", 2, []string{"upstream", "security-tools", "tool", "scan_domain", "decision", "allowed"}},
			{"haldir_calls_total", 1, []string{"upstream", "security-tools", "tool", "delete_database", "decision", "denied"}},
			{"haldir_calls_total", 1, []string{"upstream", "", "tool", "", "decision", "denied"}},
			{"haldir_outcomes_total", 2, []string{"upstream", "security-tools", "tool", "scan_domain", "status", "allowed"}},
			{"haldir_denied_total", 1, []string{"policy", "deny", "rule", "no-deletion"}},
			{"haldir_call_duration_seconds", 3, []string{"upstream", "security-tools"}},
			{"haldir_upstream_up", 1, []string{"upstream", "security-tools"}},
			{"haldir_limit_used_ratio", 0.25, []string{"rule", "slow", "per", "session"}},
			{"haldir_approvals_pending", 0, nil},
			{"haldir_stopped", 0, nil},
		} {
			if v := value(got[x.family], x.labels...); v != x.want {
				t.Errorf("%s %v is %v, want %v: %v", x.family, x.labels, v, x.want, got[x.family])
			}
		}
	}
	w.do("", "GET", "/metrics", "").problem(http.StatusUnauthorized, "unauthorized")
	w.do(w.key("audit:read"), "GET", "/metrics", "").problem(http.StatusForbidden, "forbidden")
	w.do(metrics, "GET", "/v1/audit", "").problem(http.StatusForbidden, "forbidden")
}
