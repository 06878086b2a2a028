package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/haldir-mcp/haldir/audit"
)

func auditExport(a *app) *cobra.Command {
	var format, out string
	var from uint64
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write every record with all its hashed fields, and a manifest",
		Long: "export writes the records in order, so that they can be verified without haldir\n" +
			"(docs/audit-format.md). The manifest goes to FILE.manifest.json beside --out\n" +
			"FILE, or to stderr when the records go to stdout. Where old records were pruned it\n" +
			"begins after them, and the manifest has what is known of them.\n\n" +
			"--format ocsf writes events for a SIEM instead: one API Activity (6003) of OCSF\n" +
			audit.OCSFVersion + " a line, each call once, with its outcome, when it has ended.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if format != "jsonl" && format != "csv" && format != "ocsf" {
				return usage("--format must be jsonl, csv or ocsf")
			}
			if err := a.openState(); err != nil {
				return err
			}
			var m audit.Manifest
			var text []byte
			err = a.output(out, func(w io.Writer) (err error) {
				if m, err = a.export(cmd, w, format, from); err != nil {
					return err
				}
				if text, err = json.MarshalIndent(m, "", "  "); err != nil || out == "" {
					return err
				}
				return written(out+".manifest.json", os.O_TRUNC, func(w io.Writer) error {
					_, err := w.Write(append(text, '\n'))
					return err
				})
			})
			switch {
			case err != nil:
				return err
			case out == "":
				a.say("%s", text)
			default:
				a.say("%s: %s", out, m)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl, csv or ocsf")
	cmd.Flags().StringVar(&out, "out", "", "a new file to write to (default stdout)")
	cmd.Flags().Uint64Var(&from, "from", 1, "the first record")
	return cmd
}

// export writes the records from a number on and describes what it wrote.
func (a *app) export(cmd *cobra.Command, w io.Writer, format string, from uint64) (audit.Manifest, error) {
	m := audit.Manifest{Format: format}
	sum := sha256.New()
	buffered := bufio.NewWriter(io.MultiWriter(w, sum))
	lines := json.NewEncoder(buffered)
	lines.SetEscapeHTML(false)
	rows := csv.NewWriter(buffered)
	if format == "csv" {
		if err := rows.Write(audit.CSVHeader()); err != nil {
			return m, err
		}
	}
	events := &audit.Joiner{Ended: true, Each: func(e *audit.Event) error {
		m.Events++
		return lines.Encode(e.OCSF(version()))
	}}
	gone, err := a.ledger.Pruned(cmd.Context())
	if err != nil {
		return m, err
	}
	if gone.Size > 0 && from <= gone.Size+1 {
		m.Pruned, from = &gone, gone.Size+1
	}
	_, _, err = a.ledger.Walk(cmd.Context(), from, func(key uint64, raw []byte) error {
		e, err := audit.Export(raw)
		if err != nil {
			return &audit.Damage{Seq: key, Kind: audit.DamageUnreadable, Detail: err.Error()}
		}
		if m.Count++; m.Count == 1 {
			if m.First = e.Seq; m.First < from || m.Pruned != nil && m.First != from {
				return fmt.Errorf("records were %w meanwhile; begin again", audit.ErrPruned)
			}
		}
		m.Last, m.Head = e.Seq, e.Hash
		switch format {
		case "csv":
			return rows.Write(e.CSV())
		case "ocsf":
			return events.Add(key, raw)
		}
		return lines.Encode(e)
	})
	if err == nil {
		err = events.End()
	}
	rows.Flush()
	if err = cmp.Or(err, rows.Error(), buffered.Flush()); err != nil { // each may be the one before
		return m, err
	}
	m.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return m, nil
}

// output has something written to where --out says: a new file, or else standard output.
func (a *app) output(path string, write func(io.Writer) error) error {
	if path == "" {
		return write(a.out)
	}
	return written(path, os.O_EXCL, write)
}

// written has a file written for this user only. One that could not be written whole does not
// stay: it would be in the way of the next attempt, or be taken for what it is not.
func written(path string, flag int, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flag, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err = cmp.Or(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
