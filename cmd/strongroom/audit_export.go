package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/audit"
	"strongroom/internal/audit/ocsf"
	"strongroom/internal/customer"
)

func newAuditExport() *cobra.Command {
	var s settings
	var format, from, to, owner string
	var q audit.ExportQuery
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write events to standard output, for other tools",
		Long: `Writes events to standard output, oldest first: as OCSF ` + ocsf.Version + ` (one JSON object a line), as JSON lines like
those of "audit tail --json", or as CSV. Personal parts, the callers' addresses among them, are left out
unless --reveal and a --reason are given, which the trail keeps. The export is itself an event.`,
		Example: `  strongroom audit export --format ocsf --from 2026-01-01 > events.ndjson
  strongroom audit export --format csv --customer cus_… --reveal --reason "request by the customer" > events.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Since, err = moment("from", from); err != nil {
				return err
			}
			if q.Until, err = moment("to", to); err != nil {
				return err
			}
			q.Customer = customer.ID(owner)
			write, flush, err := exporter(format, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			written, unverified := 0, 0
			err = o.ExportTrail(cmd.Context(), q, func(events []audit.Entry) error {
				for _, e := range events {
					if e.Outcome == audit.Unverified {
						unverified++
					}
					if err := write(e); err != nil {
						return err
					}
				}
				written += len(events)
				return nil
			})
			switch err = errors.Join(err, flush()); {
			case err != nil && written > 0:
				return fmt.Errorf("the export was cut short after %d events: %w", written, err)
			case err != nil:
				return err
			}
			fmt.Fprintf(os.Stderr, "%d events exported\n", written)
			if unverified > 0 {
				fmt.Fprintf(os.Stderr, "%d of them were not written by Strongroom, or altered since: run strongroom audit verify\n", unverified)
			}
			return nil
		},
	}
	s.place(cmd)
	f := cmd.Flags()
	f.StringVar(&format, "format", "ocsf", "ocsf, json or csv")
	f.StringVar(&from, "from", "", "the first day or moment (2026-01-31 or 2026-01-31T12:00:00Z); empty: from the beginning")
	f.StringVar(&to, "to", "", "the first day or moment that is left out; empty: now")
	f.StringVar(&owner, "customer", "", "events about this customer only")
	f.BoolVar(&q.Reveal, "reveal", false, "write the personal parts too")
	f.StringVar(&q.Reason, "reason", "", "why the personal parts are needed")
	return cmd
}

// moment reads a day, which begins at midnight UTC, or a moment.
func moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("--%s %q is no moment: write 2026-01-31 or 2026-01-31T12:00:00Z", flag, text)
}

// exporter returns what writes an event in a format, and what must be called at the end.
func exporter(format string, w io.Writer) (write func(audit.Entry) error, flush func() error, err error) {
	out := bufio.NewWriterSize(w, 64<<10)
	switch format {
	case "ocsf":
		return func(e audit.Entry) error {
			b, err := ocsf.Marshal(e, ocsf.Product{Version: version})
			if err == nil {
				_, err = out.Write(append(b, '\n'))
			}
			return err
		}, out.Flush, nil
	case "json":
		return func(e audit.Entry) error { return printEntry(out, e, true) }, out.Flush, nil
	case "csv":
		rows := csv.NewWriter(out)
		if err := rows.Write(ocsf.CSVHeader); err != nil {
			return nil, nil, err
		}
		return func(e audit.Entry) error {
				row, err := ocsf.CSV(e)
				if err == nil {
					err = rows.Write(row)
				}
				return err
			}, func() error {
				rows.Flush()
				return errors.Join(rows.Error(), out.Flush())
			}, nil
	}
	return nil, nil, fmt.Errorf("--format %q is none: choose ocsf, json or csv", format)
}
