package api

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/wire"
)

// exportAudit streams every record, so that they can be verified without haldir; with a
// filter, the entries that it selects, for people. The manifest comes as the trailer
// Haldir-Manifest.
func (a *API) exportAudit(r *request) (*reply, error) {
	if err := r.takes(append([]string{"format", "from"}, filterNames...)...); err != nil {
		return nil, err
	}
	format := cmp.Or(r.query.Get("format"), "jsonl")
	kind := map[string]string{"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}[format]
	if kind == "" {
		return nil, malformed("the parameter format must be jsonl or csv, not %q", wire.Printable(format, 50))
	}
	from, err := r.number("from", 1, 1, 1<<62)
	if err != nil {
		return nil, err
	}
	f, err := a.filter(r)
	if err != nil {
		return nil, err
	}
	filtered := slices.ContainsFunc(filterNames, r.query.Has)
	if filtered && r.query.Has("from") {
		return nil, malformed("from is for an export of all records; a filter has since")
	}
	h := r.w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", `attachment; filename="haldir-audit.`+format+`"`)
	h.Set("Trailer", "Haldir-Manifest")
	if r.Method == http.MethodHead {
		return nil, nil //nolint:nilnil // it is written
	}
	e := newExport(patient{r.w}, format)
	if filtered {
		err = a.exportEntries(r, f, e)
	} else {
		err = a.exportRecords(r, uint64(from), e) //nolint:gosec // at least 1
	}
	m, bad := e.end()
	if err = errors.Join(err, bad); err != nil {
		a.o.Log.Warn().Err(err).Msg("an export broke off")
		panic(http.ErrAbortHandler) // what is there must not look whole
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		panic(http.ErrAbortHandler) // as above
	}
	h.Set("Haldir-Manifest", string(manifest))
	return nil, nil //nolint:nilnil // it is written
}

// export writes one line after another, and adds up what it wrote.
type export struct {
	m     audit.Manifest
	out   *bufio.Writer
	sum   interface{ Sum([]byte) []byte }
	lines *json.Encoder
	rows  *csv.Writer // nil for lines of JSON
}

func newExport(w io.Writer, format string) *export {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	e := &export{m: audit.Manifest{Format: format}, out: out, sum: sum, lines: json.NewEncoder(out)}
	e.lines.SetEscapeHTML(false)
	if format == "csv" {
		e.rows = csv.NewWriter(out)
	}
	return e
}

func (e *export) write(v any, row []string) error {
	e.m.Count++
	if e.rows != nil {
		return e.rows.Write(row)
	}
	return e.lines.Encode(v)
}

func (e *export) end() (audit.Manifest, error) {
	if e.rows != nil {
		e.rows.Flush()
		if err := e.rows.Error(); err != nil {
			return e.m, err
		}
	}
	err := e.out.Flush()
	e.m.SHA256 = hex.EncodeToString(e.sum.Sum(nil))
	return e.m, err
}

func (a *API) exportRecords(r *request, from uint64, e *export) error {
	if e.rows != nil {
		if err := e.rows.Write(audit.CSVHeader()); err != nil {
			return err
		}
	}
	gone, err := a.o.Ledger.Pruned(r.Context())
	if err != nil {
		return err
	}
	if gone.Size > 0 && from <= gone.Size+1 {
		e.m.Pruned, from = &gone, gone.Size+1
	}
	_, _, err = a.o.Ledger.Walk(r.Context(), from, func(key uint64, raw []byte) error {
		if e.m.Count%exportPage == 0 && !r.caller.Valid() {
			return errEnded
		}
		x, err := audit.Export(raw)
		if err != nil {
			return &audit.Damage{Seq: key, Kind: audit.DamageUnreadable, Detail: err.Error()}
		}
		if e.m.Count == 0 {
			if e.m.First = x.Seq; e.m.Pruned != nil && x.Seq != from {
				return audit.ErrPruned // between the two
			}
		}
		e.m.Last, e.m.Head = x.Seq, x.Hash
		return e.write(x, x.CSV())
	})
	return err
}

// entryHeader names the columns of an entry.
var entryHeader = []string{
	"timestamp", "seq", "kind", "session_id", "agent_id", "client", "upstream", "tool", "status", "flagged", "flag_reason", "policy", "rule",
	"cost_usd", "duration_ms", "arguments", "arguments_sha256", "result_sha256", "approval", "hash",
}

// entryRow is an entry for a spreadsheet. What that would take for a formula is made a
// text: people open it.
func entryRow(x *audit.Entry) []string {
	row := []string{
		x.Timestamp.UTC().Format(time.RFC3339Nano), strconv.FormatUint(x.Seq, 10), x.Kind, x.SessionID, x.AgentID, x.Client, x.Upstream, x.Tool,
		string(x.Status), strconv.FormatBool(x.Flagged), x.FlagReason, x.Policy, x.Rule, string(x.CostUSD), strconv.FormatUint(x.DurationMS, 10),
		string(x.Arguments), x.ArgumentsSHA256, x.ResultSHA256, x.Approval, x.Hash,
	}
	for i, text := range row {
		if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
			row[i] = "'" + text
		}
	}
	return row
}

// exportPage is how many entries are in memory at once, and after how many it is asked
// whether the caller may still have them.
const exportPage = 500

var errEnded = errors.New("the key was revoked or has expired, or the page was signed out")

func (a *API) exportEntries(r *request, f audit.Filter, e *export) error {
	if e.rows != nil {
		if err := e.rows.Write(entryHeader); err != nil {
			return err
		}
	}
	f.Limit = exportPage
	for {
		if !r.caller.Valid() {
			return errEnded
		}
		entries, next, err := a.o.Ledger.Find(r.Context(), f)
		if err != nil {
			return err
		}
		for _, x := range entries {
			if e.m.Count == 0 {
				e.m.Last = x.Seq
			}
			e.m.First = x.Seq
			if err := e.write(x, entryRow(&x)); err != nil {
				return err
			}
		}
		if next == 0 {
			return nil
		}
		f.Before = next
	}
}

// patient gives each write to a client time of its own.
type patient struct{ http.ResponseWriter }

func (p patient) Write(b []byte) (int, error) {
	_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now().Add(writeGrace)) // tests have writers without
	return p.ResponseWriter.Write(b)
}
