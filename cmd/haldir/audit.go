package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/haldir-mcp/haldir/audit"
	"github.com/haldir-mcp/haldir/internal/config"
	"github.com/haldir-mcp/haldir/internal/ledger"
)

func auditCommand(a *app) *cobra.Command {
	return group("audit", "List, follow, verify, prove, export, ship, report and compact the record of every attempt", auditList(a), auditShow(a), auditFollow(a), auditVerify(a), auditProve(a), auditExport(a), auditShip(a), auditReport(a), compactCommand(a))
}

func auditList(a *app) *cobra.Command {
	var f audit.Filter
	var since, until string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List entries, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := selects(&f); err != nil {
				return err
			}
			if f.Since, err = moment(since); err != nil {
				return usage("--since: %w", err)
			}
			if f.Until, err = moment(until); err != nil {
				return usage("--until: %w", err)
			}
			if f.Limit < 1 {
				return usage("--limit must be at least 1")
			}
			if err := a.openState(); err != nil {
				return err
			}
			f.Session = a.only()
			if asJSON {
				return a.streamEntries(cmd.Context(), f)
			}
			entries, next, err := a.ledger.Find(cmd.Context(), f)
			if err != nil {
				return err
			}
			var rows [][]string
			for _, e := range entries {
				what := e.Kind
				switch {
				case e.Upstream != "":
					what = e.Upstream + "/" + e.Tool
				case e.Tool != "": // nobody's
					what = e.Tool
				}
				note := e.FlagReason
				rows = append(rows, []string{strconv.FormatUint(e.Seq, 10), when(e.Timestamp), string(e.Status), plain(what, 0), plain(note, 0)})
			}
			if err := a.printTable([]string{"SEQ", "TIME", "STATUS", "TOOL", "REASON"}, rows); err != nil {
				return err
			}
			if len(entries) == 0 {
				a.sayNone(f)
			}
			if next > 0 {
				a.say("there is more: --before %d", next)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	filterFlags(fl, &f)
	fl.StringVar(&since, "since", "", "from this time on: "+moments)
	fl.StringVar(&until, "until", "", "before this time: "+moments)
	fl.Uint64Var(&f.Before, "before", 0, "only entries with a smaller number, to go on with a list")
	fl.IntVar(&f.Limit, "limit", 50, "at most so many")
	fl.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// sayNone says what nothing was found of, as that may be misspelt.
func (a *app) sayNone(f audit.Filter) {
	switch {
	case f.Tool != "":
		a.say("haldir: nothing was found of a tool %q; `%s tools` lists the names", f.Tool, a.command())
	case f.Session != "":
		a.say("haldir: nothing was found of a session %q; `%s session list` lists them", f.Session, a.command())
	case f.Agent != "":
		a.say("haldir: nothing was found of an agent %q; `%s session list` has their names", f.Agent, a.command())
	case f.Upstream != "":
		a.say("haldir: nothing was found of an upstream %q; `%s upstream list` lists them", f.Upstream, a.command())
	}
}

// filterFlags are those of the verbs that select entries.
func filterFlags(fl *pflag.FlagSet, f *audit.Filter) {
	fl.StringVar(&f.Agent, "agent", "", "only this agent")
	fl.StringVar(&f.Upstream, "upstream", "", "only this upstream")
	fl.StringVar(&f.Tool, "tool", "", "only this tool: upstream/tool, its own name, or as agents see it")
	fl.StringVar((*string)(&f.Status), "status", "", "only one of "+joined(audit.CallStatuses))
	fl.BoolVar(&f.Flagged, "flagged", false, "only denials and anomalies")
	fl.BoolVar(&f.Governance, "governance", false, "with calls of haldir's own tools")
}

// selects reports a filter that could select nothing.
func selects(f *audit.Filter) error {
	if f.Status != "" && !slices.Contains(audit.CallStatuses, f.Status) {
		return usage("--status: %q is no status of an entry; they are %s", f.Status, joined(audit.CallStatuses))
	}
	return nil
}

// entriesPage is how many entries are in memory at once.
const entriesPage = 500

// streamEntries prints one object with all entries that f selects, page by page,
// so that any number of them takes little memory. Nothing is printed if the first
// page cannot be read.
func (a *app) streamEntries(ctx context.Context, f audit.Filter) error {
	count, left := 0, f.Limit
	for {
		f.Limit = min(left, entriesPage)
		entries, next, err := a.ledger.Find(ctx, f)
		if err != nil {
			return err
		}
		if count == 0 {
			if err := a.printf(`{"entries":[`); err != nil {
				return err
			}
		}
		for _, e := range entries {
			raw, err := json.Marshal(e)
			if err != nil {
				return err
			}
			separator := ",\n"
			if count == 0 {
				separator = "\n"
			}
			if err := a.printf("%s%s", separator, raw); err != nil {
				return err
			}
			count++
		}
		left -= len(entries)
		if next == 0 || left <= 0 || len(entries) == 0 {
			return a.printf("\n],\"count\":%d,\"next\":%d}\n", count, next)
		}
		f.Before = next
	}
}

func joined(statuses []audit.Status) string {
	var b strings.Builder
	for i, s := range statuses {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// moments is what [moment] reads.
const moments = "2006-01-02T15:04:05Z (RFC 3339), 2006-01-02, or an age such as 7d or 2h"

// moment reads a time, or an age.
func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return t, nil
	}
	d, err := config.ParseDuration(text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time; give %s", text, moments)
	}
	return time.Now().Add(-d), nil
}

func auditShow(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show SEQ",
		Short: "Show one entry with everything that is recorded of it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseUint(strings.TrimPrefix(args[0], "aud_"), 10, 64)
			if err != nil {
				return usage("%q is no number of an entry", args[0])
			}
			if err := a.openState(); err != nil {
				return err
			}
			e, ok, err := a.ledger.Entry(cmd.Context(), seq)
			if err != nil {
				return err
			}
			if !ok {
				if gone, err := a.ledger.Pruned(cmd.Context()); err != nil || seq > 0 && seq <= gone.Size {
					return errors.Join(err, fmt.Errorf("entry %d was pruned (audit.retain); the first record that is kept is %d", seq, gone.Size+1))
				}
				return fmt.Errorf("there is no entry %d", seq)
			}
			if asJSON {
				return a.printJSON(e)
			}
			return a.printEntry(e)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// printEntry writes the fields that are set, one a line.
func (a *app) printEntry(e audit.Entry) error {
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		text := string(value)
		var s string
		if json.Unmarshal(value, &s) == nil {
			text = s
		}
		if err := a.printf("%-18v %s\n", key, plain(text, 0)); err != nil {
			return err
		}
	}
	return nil
}

func auditVerify(a *app) *cobra.Command {
	var asJSON bool
	var file, public string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no record was changed, removed, added or moved",
		Long: "verify reads the whole chain and compares it with the signed checkpoints. It\n" +
			"exits with status 4 and names the first bad record when the chain is not intact.\n" +
			"Where old records were pruned (audit.retain) it begins with what was signed of\n" +
			"them.\n\n" +
			"--checkpoint compares it with a checkpoint that you kept elsewhere as well: a\n" +
			"signed note, a proof made by `haldir audit prove`, or a copy of checkpoints.log.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.openState(); err != nil {
				return err
			}
			extra, err := a.checkpoints(cmd.Context(), file, public)
			if err != nil {
				return err
			}
			v, err := a.ledger.Verify(cmd.Context(), a.progress(), extra...)
			if damage, ok := errors.AsType[*audit.Damage](err); ok && asJSON {
				return errors.Join(err, a.printJSON(map[string]any{"ok": false, "damage": damage}))
			}
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(map[string]any{
					"ok": true, "records": v.Count(), "head": v.Head().String(), "signed": v.Agreed(), "pruned": v.Pruned(), "uncompared": before(extra, v.Pruned()),
				})
			}
			if n := before(extra, v.Pruned()); n > 0 {
				a.say("%d checkpoint(s) of %s are over fewer than the %d records that were pruned: they were compared with what the log still has of then, not with records", n, file, v.Pruned())
			}
			gone := ""
			if v.Pruned() > 0 {
				gone = fmt.Sprintf("; %d older ones were pruned, and signed before", v.Pruned())
			}
			return a.printf("verify: ok (%d records, %d of them under a signed checkpoint, head %s%s)\n", v.Count(), v.Agreed(), v.Head(), gone)
		},
	}
	cmd.Flags().StringVar(&file, "checkpoint", "", "a checkpoint kept elsewhere to compare with")
	cmd.Flags().StringVar(&public, "public-key", "", "the public key of --checkpoint (default: this ledger's)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// before counts the checkpoints over fewer records than were pruned.
func before(list []audit.Checkpoint, gone uint64) (n int) {
	for _, c := range list {
		if c.Size < gone {
			n++
		}
	}
	return n
}

// checkpoints reads the file of --checkpoint.
func (a *app) checkpoints(ctx context.Context, file, public string) ([]audit.Checkpoint, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, usage("--checkpoint: %w", err)
	}
	if public == "" {
		if _, public, err = a.ledger.Checkpoints(ctx); err != nil {
			return nil, err
		}
	}
	var proof ledger.Proof
	switch {
	case bytes.HasPrefix(data, []byte(`{"note":`)):
		return audit.ReadLog(data, public)
	case json.Unmarshal(data, &proof) == nil && proof.Checkpoint != "":
		data = []byte(proof.Checkpoint)
	}
	c, err := audit.OpenCheckpoint(string(data), public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return []audit.Checkpoint{c}, nil
}

func auditProve(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "prove SEQ",
		Short: "Print a proof that a record is in the chain, with a signed checkpoint, as JSON",
		Long: "prove makes a checkpoint and prints the record's audit path to it. With --checkpoint\n" +
			"the path leads to one that you have kept, a signed note or a proof of before.\n" +
			"A record that was pruned cannot be proven any more: keep the proof while it is there.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseUint(strings.TrimPrefix(args[0], "aud_"), 10, 64)
			if err != nil {
				return usage("%q is no number of a record", args[0])
			}
			if err := a.openState(); err != nil {
				return err
			}
			var p ledger.Proof
			if file == "" {
				p, err = a.ledger.Prove(cmd.Context(), seq)
			} else {
				p, err = a.proveIn(cmd.Context(), seq, file)
			}
			if err != nil {
				return err
			}
			return a.printJSON(p)
		},
	}
	cmd.Flags().StringVar(&file, "checkpoint", "", "a checkpoint that you have kept")
	return cmd
}

// proveIn proves a record against a checkpoint that was kept.
func (a *app) proveIn(ctx context.Context, seq uint64, file string) (ledger.Proof, error) {
	list, err := a.checkpoints(ctx, file, "")
	if err != nil {
		return ledger.Proof{}, err
	}
	if len(list) != 1 {
		return ledger.Proof{}, usage("--checkpoint: %s has %d checkpoints; one is needed", file, len(list))
	}
	note, err := os.ReadFile(file)
	if err != nil {
		return ledger.Proof{}, err
	}
	var kept ledger.Proof
	if json.Unmarshal(note, &kept) == nil {
		note = []byte(kept.Checkpoint)
	}
	return a.ledger.ProveIn(ctx, seq, list[0], string(note))
}

// progress shows how far long work has come, on a terminal only.
func (a *app) progress() func(done uint64) {
	if terminal(a.err) == nil {
		return nil
	}
	return func(done uint64) {
		_, _ = fmt.Fprintf(a.err, "\r%d records\r", done) // only for the eye
	}
}
