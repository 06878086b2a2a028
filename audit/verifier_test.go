package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/ledger"
	"github.com/haldir-mcp/haldir/internal/mcptest"
	"github.com/haldir-mcp/haldir/policy"
)

// testdata/verify.mjs is a verifier in another language, written from
// docs/audit-format.md alone. If it and haldir agree, the document is enough.

// second is a state directory, its export, and the second verifier.
type second struct {
	node     string
	export   []byte
	manifest []byte
	log      string // the checkpoint log
	public   string
	before   []byte // an export of before records were pruned
}

func newSecond(t *testing.T) *second {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		mcptest.Unavailable(t, "there is no node: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	checkpoints := inhabit(t, dir)
	s := exported(t, node, dir, []string{"key", "create", "--name", "prometheus", "--scopes", "metrics:read"})
	if !bytes.Contains(s.export, []byte(`"kind":"key"`)) {
		t.Fatal("there is no record of a key")
	}
	if got := bytes.Count(s.export, []byte("\n")); got < 100 || checkpoints < 3 {
		t.Fatalf("%d records and %d checkpoints are too few", got, checkpoints)
	}
	return s
}

// exported is a state directory after some verbs, and its export.
func exported(t *testing.T, node, dir string, verbs ...[]string) *second {
	t.Helper()
	s := &second{node: node, log: filepath.Join(dir, "checkpoints.log")}
	key, err := os.ReadFile(filepath.Join(dir, "checkpoint.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.public = strings.Split(string(key), "\n")[1]
	haldir, out := filepath.Join(t.TempDir(), "haldir"), filepath.Join(t.TempDir(), "all.jsonl")
	all := [][]string{{"go", "build", "-o", haldir, "../cmd/haldir"}}
	for _, args := range append(verbs, []string{"audit", "export", "--out", out}) {
		all = append(all, append([]string{haldir, "--state-dir", dir}, args...))
	}
	for _, args := range all {
		if said, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, said)
		}
	}
	if s.export, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	if s.manifest, err = os.ReadFile(out + ".manifest.json"); err != nil {
		t.Fatal(err)
	}
	return s
}

// inhabit makes a ledger with records of every kind, and several checkpoints.
func inhabit(t *testing.T, dir string) (checkpoints int) {
	t.Helper()
	ctx := context.Background()
	e, err := policy.Compile(policy.Ruleset{
		Costs: []policy.Cost{{Tools: []string{"shop/pay"}, HasFromArgument: true, FromArgument: "/amount"}},
		Policies: []policy.Rule{
			{Type: policy.TypeDeny, Tools: []string{"shop/steal"}},
			{Type: policy.TypeSpendLimit, ID: "session", MaxUSD: 1000 * policy.USD},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for life := range 3 {
		l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: time.Now, Logger: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			arguments := fmt.Appendf(nil, `{"amount":%d.%06d,"path":"<\u2028 & ünï\"cödé\\ >","blob":%q}`, rng.IntN(3), rng.IntN(1e6),
				strings.Repeat("x", []int{0, 100, 127, 300}[rng.IntN(4)]))
			tool := []string{"pay", "steal", "look", "größe", "odd\xfftool", "base64:no"}[rng.IntN(6)]
			a := ledger.Attempt{
				Use:  ledger.Use{ID: fmt.Sprintf("ses_%d", i%3), Terms: &ledger.Terms{Agent: "bot", AllScopes: true}},
				Call: policy.Call{Upstream: "shop", Tool: tool, Arguments: arguments}, Body: audit.NewBody(arguments, audit.DetailFull, nil),
				Client: "a \"client\" 1.0\u2029", Config: audit.Sum([]byte{byte(life)}),
			}
			ticket, d, err := l.Reserve(ctx, a, e)
			if err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 {
				if err := l.Record(ctx, a, "it\tfailed"); err != nil {
					t.Fatal(err)
				}
			}
			if d.Verdict != policy.Allow || i == 11 { // which is abandoned
				continue
			}
			m := policy.Micros(rng.Int64N(int64(5 * policy.USD)))
			l.Settle(ticket, ledger.Outcome{Result: ledger.Result(i % 6), Actual: &m, ResultSHA256: audit.Sum(arguments)})
		}
		if err := l.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Prove(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Revoke(ctx, "ses_1", false); err != nil {
			t.Fatal(err)
		}
		err = l.ChangePins(ctx, "shop", func(old []byte) ([]byte, []ledger.Note, error) {
			return append(old, 'x'), []ledger.Note{{Status: audit.StatusChanged, Name: "tool pay", Text: "it has changed", Digest: audit.Sum(old), Flagged: true}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		list, _, err := l.Checkpoints(ctx)
		if err := errors.Join(err, l.Close(ctx)); err != nil {
			t.Fatal(err)
		}
		checkpoints = len(list)
	}
	return checkpoints
}

// trial is an export for the second verifier, and the record that it must name,
// -1 for none.
type trial struct {
	name             string
	want             int
	export, manifest []byte
	log              string // the checkpoint log, if any
	said             string
}

// judge has the second verifier judge trials, all in one process.
func (s *second) judge(t *testing.T, trials []*trial) {
	t.Helper()
	dir := t.TempDir()
	var in bytes.Buffer
	for i, x := range trials {
		args := []string{filepath.Join(dir, fmt.Sprint(i))}
		if err := os.WriteFile(args[0], x.export, 0o600); err != nil {
			t.Fatal(err)
		}
		if x.manifest != nil {
			args = append(args, args[0]+".manifest", x.log, s.public)
			if err := os.WriteFile(args[1], x.manifest, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := json.NewEncoder(&in).Encode(args); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(s.node, filepath.Join("testdata", "verify.mjs"), "--all")
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stderr = &in, &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, complaint.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(trials) {
		t.Fatalf("%d verdicts for %d exports: %s", len(lines), len(trials), complaint.String())
	}
	for i, x := range trials {
		x.said = lines[i]
		want := "ok "
		if x.want >= 0 {
			want = fmt.Sprintf("bad %d: ", x.want)
		}
		if !strings.HasPrefix(x.said, want) {
			t.Errorf("%s: want %q, the second verifier says %s", x.name, want, x.said)
		}
	}
}

// rewrite changes a record of an export. With sealed its own hash is made anew,
// as whoever forges one would see to.
func rewrite(t *testing.T, line []byte, sealed bool, change func(*audit.Exported)) []byte {
	t.Helper()
	var e audit.Exported
	if err := json.Unmarshal(line, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	if sealed {
		e.Hash = audit.Sum(canonical(t, &e))
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&e); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// canonical makes the bytes that are hashed of an exported record.
func canonical(t *testing.T, e *audit.Exported) []byte {
	t.Helper()
	hash := func(s string) (h audit.Hash) {
		if s != "" {
			if err := h.UnmarshalText([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		return h
	}
	at, err := time.Parse(time.RFC3339Nano, e.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	cost, err := policy.ParseUSD(string(e.CostUSD))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*string{&e.Tool} { // the only one here that is not UTF-8
		if raw, ok := strings.CutPrefix(*s, "base64:"); ok {
			b, err := base64.StdEncoding.DecodeString(raw)
			if err != nil {
				t.Fatal(err)
			}
			defer func(was string) { e.Tool = was }(e.Tool)
			*s = string(b)
		}
	}
	r := audit.Record{
		Seq: e.Seq, Prev: e.PrevHash, Time: at, Status: e.Status, Ref: e.Ref, CallID: e.CallID, Session: e.SessionID, Agent: e.AgentID,
		Client: e.Client, Upstream: e.Upstream, Tool: e.Tool, Flagged: e.Flagged, FlagReason: e.FlagReason, Policy: e.Policy, Rule: e.Rule,
		Also: []byte(e.Also), Cost: int64(cost), DurationMS: e.DurationMS, Arguments: []byte(e.Arguments),
		ArgumentsSHA256: hash(e.ArgumentsSHA256), ArgumentsSize: e.ArgumentsSize, ResultSHA256: hash(e.ResultSHA256), Approval: e.Approval,
		ConfigSHA256: hash(e.ConfigSHA256), Threads: audit.Threads{
			Session: e.ThreadSession, Agent: e.ThreadAgent, Upstream: e.ThreadUpstream, Tool: e.ThreadTool, Status: e.ThreadStatus, Flagged: e.ThreadFlagged,
		},
	}
	for k := audit.Kind(1); ; k++ {
		if k.String() == e.Kind {
			r.Kind = k
			break
		}
		if k == 255 {
			t.Fatalf("no kind %s", e.Kind)
		}
	}
	return r.Encode()
}

func TestASecondVerifierAgreesWithHaldir(t *testing.T) {
	s := newSecond(t)
	lines := bytes.Split(bytes.TrimSuffix(s.export, []byte("\n")), []byte("\n"))
	honest := &trial{name: "an honest export", want: -1, export: s.export, manifest: s.manifest, log: s.log}
	alone := &trial{name: "without what goes with it", want: -1, export: s.export}
	trials := []*trial{honest, alone}
	for _, by := range []byte{'A', 'B', ':', '='} { // other bytes, and no base64
		trials = append(trials, s.badSignature(t, by))
	}
	n := len(lines)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	places := []int{0, n - 1}
	more := 4
	if soaking {
		more = 100
	}
	for range more {
		places = append(places, rng.IntN(n))
	}
	for name, tamper := range tampers(t, rng) {
		for _, at := range places {
			changed, want := tamper(slices.Clone(lines), at)
			x := &trial{name: fmt.Sprintf("%s at %d", name, at+1), want: want, manifest: s.manifest, log: s.log}
			if len(changed) > 0 {
				x.export = append(bytes.Join(changed, []byte("\n")), '\n')
			}
			if want == afterSigned {
				x.manifest, x.want = s.forge(t, changed), s.signedBefore(t, at+1)+1
			}
			trials = append(trials, x)
		}
	}
	s.judge(t, trials)
	var tree audit.Tree
	for _, line := range lines {
		var e audit.Exported
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		tree.Add(e.Hash)
	}
	root := tree.Root()
	want := fmt.Sprintf("ok %d records, %d checkpoints, root %s", n, bytes.Count(mustRead(t, s.log), []byte("\n")), base64.StdEncoding.EncodeToString(root[:]))
	if honest.said != want {
		t.Errorf("it says %s, want %s", honest.said, want)
	}
	t.Logf("%d tampered exports", len(trials)-2)
}

// afterSigned stands for the record after the last checkpoint before the place.
const afterSigned = -2

// tampers change the lines of an export at a place and say which record must be
// named.
func tampers(t *testing.T, rng *rand.Rand) map[string]func(l [][]byte, at int) (changed [][]byte, want int) {
	t.Helper()
	return map[string]func(l [][]byte, at int) ([][]byte, int){
		"an edit": func(l [][]byte, at int) ([][]byte, int) {
			l[at] = rewrite(t, l[at], false, func(e *audit.Exported) { e.CostUSD = json.RawMessage("12.5") })
			return l, at + 1
		},
		"an edit with its hash made anew": func(l [][]byte, at int) ([][]byte, int) {
			l[at] = rewrite(t, l[at], true, func(e *audit.Exported) { e.Status += "!" })
			return l, at + 1
		},
		"an edited link": func(l [][]byte, at int) ([][]byte, int) {
			l[at] = rewrite(t, l[at], true, func(e *audit.Exported) { e.PrevHash[5] ^= 1 })
			return l, at + 1
		},
		"a deletion": func(l [][]byte, at int) ([][]byte, int) { return slices.Delete(l, at, at+1), at + 1 },
		"an insertion": func(l [][]byte, at int) ([][]byte, int) {
			return slices.Insert(l, at, rewrite(t, l[at], true, func(e *audit.Exported) { e.Tool = "innocent" })), at + 1
		},
		"a swap": func(l [][]byte, at int) ([][]byte, int) {
			other := (at + 1 + rng.IntN(len(l)-1)) % len(l)
			l[at], l[other] = l[other], l[at]
			return l, min(at, other) + 1
		},
		"a truncation": func(l [][]byte, at int) ([][]byte, int) { return l[:at], at + 1 },
		"a changed letter": func(l [][]byte, at int) ([][]byte, int) {
			l[at] = bytes.Clone(l[at])
			value := []byte(`"prev_hash":"`) // every record has one
			i := bytes.Index(l[at], value) + len(value) + rng.IntN(64)
			l[at][i] = "0123456789abcdef0"[bytes.IndexByte([]byte("0123456789abcdef"), l[at][i])+1]
			return l, at + 1
		},
		// The whole chain made anew from a place on: only what was signed tells.
		"another history": func(l [][]byte, at int) ([][]byte, int) {
			var prev audit.Hash
			for i := at; i < len(l); i++ {
				l[i] = rewrite(t, l[i], true, func(e *audit.Exported) {
					if i > at {
						e.PrevHash = prev
					}
					e.Approval = "forged"
				})
				var e audit.Exported
				if err := json.Unmarshal(l[i], &e); err != nil {
					t.Fatal(err)
				}
				prev = e.Hash
			}
			return l, afterSigned
		},
	}
}

// badSignature is an honest export with one letter of a signature changed.
func (s *second) badSignature(t *testing.T, by byte) *trial {
	t.Helper()
	log := mustRead(t, s.log)
	i := bytes.Index(log, []byte("— haldir/")) + 60
	if log[i] == by {
		by = 'C'
	}
	log[i] = by
	x := &trial{name: fmt.Sprintf("a signature changed by %c", by), want: 0, export: s.export, manifest: s.manifest, log: filepath.Join(t.TempDir(), "log")}
	if err := os.WriteFile(x.log, log, 0o600); err != nil {
		t.Fatal(err)
	}
	return x
}

// forge makes the manifest of a changed export.
func (s *second) forge(t *testing.T, lines [][]byte) []byte {
	t.Helper()
	var m audit.Manifest
	var last audit.Exported
	if err := errors.Join(json.Unmarshal(s.manifest, &m), json.Unmarshal(lines[len(lines)-1], &last)); err != nil {
		t.Fatal(err)
	}
	m.Head = last.Hash
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// signedBefore returns the size of the last checkpoint that a record is not in.
func (s *second) signedBefore(t *testing.T, seq int) int {
	t.Helper()
	list, err := audit.ReadLog(mustRead(t, s.log), s.public)
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, c := range list {
		if c.Size < uint64(seq) {
			size = int(c.Size)
		}
	}
	return size
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// prunedExport is the export of a ledger whose first records were pruned.
func prunedExport(t *testing.T) *second {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		mcptest.Unavailable(t, "there is no node: %v", err)
	}
	e, err := policy.Compile(policy.Ruleset{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	for _, age := range []time.Duration{72 * time.Hour, 0} {
		l, err := ledger.Open(ledger.Options{Dir: dir, NoSync: true, Clock: func() time.Time { return time.Now().Add(-age) }, Logger: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		for range 600 {
			ticket, _, err := l.Reserve(context.Background(), ledger.Attempt{
				Use:  ledger.Use{ID: "ses_a", Terms: &ledger.Terms{Agent: "bot", AllScopes: true}},
				Call: policy.Call{Upstream: "shop", Tool: "look", Arguments: []byte(`{}`)},
			}, e)
			if err != nil {
				t.Fatal(err)
			}
			l.Settle(ticket, ledger.Outcome{Result: ledger.Done})
		}
		if err := l.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(t.TempDir(), "haldir.yaml")
	if err := os.WriteFile(config, []byte("version: 1\naudit: {retain: 1d}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(t.TempDir(), "before.jsonl")
	s := exported(t, node, dir, []string{"audit", "export", "--out", before}, []string{"--config", config, "audit", "compact", "--now"}, []string{"audit", "verify"})
	s.before = mustRead(t, before)
	return s
}

// shipped is what a collector has that got every record before it was pruned.
func (s *second) shipped() (lines [][]byte) {
	lines = exportLines(s.before)
	known := lines[len(lines)-1]
	now := exportLines(s.export)
	for i, line := range now {
		if bytes.Equal(line, known) {
			return append(lines, now[i+1:]...)
		}
	}
	return nil
}

func exportLines(export []byte) [][]byte {
	return bytes.Split(bytes.TrimSuffix(export, []byte("\n")), []byte("\n"))
}

func exportOf(lines [][]byte) []byte { return append(bytes.Join(lines, []byte("\n")), '\n') }

// What was exported or shipped before it was pruned is no worse for that, and must be what
// the records tell that went; what is not there must have gone.
func TestASecondVerifierKnowsRecordsThatWentLater(t *testing.T) {
	s := prunedExport(t)
	all, kept := s.shipped(), exportLines(s.export)
	gone, told := len(all)-len(kept), 0
	for i, line := range all {
		if bytes.Contains(line, []byte(`"status":"pruned"`)) {
			told = i + 1
		}
	}
	if gone < 100 || told <= gone {
		t.Fatalf("%d of %d records are gone, as record %d tells", gone, len(all), told)
	}
	var last audit.Exported
	if err := json.Unmarshal(all[len(all)-1], &last); err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal(audit.Manifest{Count: uint64(len(all)), First: 1, Last: last.Seq, Head: last.Hash, SHA256: fmt.Sprintf("%x", sha256.Sum256(exportOf(all)))})
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := tampers(t, rand.New(rand.NewPCG(1, 2)))["another history"](slices.Clone(all), gone-5)
	s.judge(t, []*trial{
		{name: "exported while it was pruned", want: -1, export: exportOf(all), manifest: manifest, log: s.log},
		{name: "shipped before it was pruned", want: -1, export: exportOf(all)},
		{name: "shipped from then on", want: -1, export: s.export},
		{name: "a part of those that went", want: 1, export: exportOf(all[5:gone])},
		{name: "what was shipped from before on", want: -1, export: exportOf(all[5:])},
		{name: "one record less than was kept", want: 1, export: exportOf(kept[1:])},
		{name: "one less of those that went", want: gone - 9, export: exportOf(slices.Delete(slices.Clone(all), gone-10, gone-9))},
		{name: "another history of those that went", want: told, export: exportOf(forged)},
		{name: "and of the last of them", want: 0, export: exportOf(forged[gone:])},
	})
	s.followRecipe(t, all)
	s.followRecipe(t, kept)
}

// followRecipe verifies records out of a collector as docs/observability.md says.
func (s *second) followRecipe(t *testing.T, lines [][]byte) {
	t.Helper()
	for _, tool := range []string{"bash", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			mcptest.Unavailable(t, "%v", err)
		}
	}
	_, recipe, found := strings.Cut(string(mustRead(t, filepath.Join("..", "docs", "observability.md"))), "    jq -r")
	recipe, _, end := strings.Cut(recipe, "\n\n")
	verifier, err := filepath.Abs(filepath.Join("testdata", "verify.mjs"))
	if err != nil || !found || !end {
		t.Fatalf("the page has no recipe: %v", err)
	}
	type object = map[string]any
	var records []object
	for _, line := range lines {
		records = append(records, object{"body": object{"stringValue": string(line)}})
	}
	var logs bytes.Buffer
	for _, batch := range [][]object{records[len(records)/2:], records} { // some come twice
		err := json.NewEncoder(&logs).Encode(object{"resourceLogs": []object{{
			"resource":  object{"attributes": []object{{"key": "haldir.ledger", "value": object{"stringValue": "it"}}}},
			"scopeLogs": []object{{"logRecords": batch}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "logs.json"), logs.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", "jq -r"+strings.NewReplacer("…", "it", "audit/testdata/verify.mjs", verifier).Replace(recipe))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.HasPrefix(out, fmt.Appendf(nil, "ok %d records", len(lines))) {
		t.Errorf("%v: %s", err, out)
	}
}

// An export that begins after what was pruned is verified from there on, and against the
// checkpoints; what is said of the rest is not believed.
func TestASecondVerifierChecksAnExportThatWasPruned(t *testing.T) {
	s := prunedExport(t)
	lines := bytes.Split(bytes.TrimSuffix(s.export, []byte("\n")), []byte("\n"))
	var m audit.Manifest
	if err := json.Unmarshal(s.manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.Pruned == nil || m.First != m.Pruned.Size+1 || m.First < 100 {
		t.Fatalf("the manifest says %s", s.manifest)
	}
	manifest := func(change func(*audit.Manifest)) []byte {
		var m audit.Manifest
		if err := json.Unmarshal(s.manifest, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	text := func(lines [][]byte) []byte { return append(bytes.Join(lines, []byte("\n")), '\n') }
	var first audit.Exported
	if err := json.Unmarshal(lines[0], &first); err != nil {
		t.Fatal(err)
	}
	next := *m.Pruned
	next.Head = first.Hash
	next.Tree.Peaks = slices.Clone(next.Tree.Peaks)
	next.Add(first.Hash)
	begin, end := int(m.First), int(m.Last)
	edited := rewrite(t, lines[0], false, func(e *audit.Exported) { e.Tool = "x" })
	honest := &trial{name: "an honest export", want: -1, export: s.export, manifest: s.manifest, log: s.log}
	s.judge(t, []*trial{
		honest,
		{name: "one record less at the beginning", want: begin, export: text(lines[1:]), manifest: s.manifest, log: s.log},
		{name: "and the manifest says so", want: 0, export: text(lines[1:]), log: s.log, manifest: manifest(func(m *audit.Manifest) {
			m.First, m.Count, m.Pruned = m.First+1, m.Count-1, &next
		})},
		{name: "the first record is edited", want: begin, log: s.log, manifest: s.manifest, export: text(append([][]byte{edited}, lines[1:]...))},
		{name: "the last record is missing", want: end, export: text(lines[:len(lines)-1]), manifest: s.manifest, log: s.log},
		{name: "another hash of what is gone", want: 0, export: s.export, log: s.log, manifest: manifest(func(m *audit.Manifest) { m.Pruned.Head[3] ^= 1 })},
		{name: "another tree over what is gone", want: 0, export: s.export, log: s.log, manifest: manifest(func(m *audit.Manifest) { m.Pruned.Peaks[0][3] ^= 1 })},
		{name: "less is gone", want: 0, export: s.export, log: s.log, manifest: manifest(func(m *audit.Manifest) { m.Pruned.Peaks = m.Pruned.Peaks[:1] })},
	})
	tree := m.Pruned.Tree
	for _, line := range lines {
		var e audit.Exported
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		tree.Add(e.Hash)
	}
	if root := tree.Root(); !strings.HasSuffix(honest.said, "root "+base64.StdEncoding.EncodeToString(root[:])) {
		t.Errorf("it says %s, and the root is %x", honest.said, root)
	}
}
