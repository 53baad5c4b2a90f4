package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/vault"
)

func newVaultImport() *cobra.Command {
	var s settings
	var collection, format, report string
	var replace, asJSON bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import records of customers from NDJSON or CSV",
		Long: `Imports one record a line. NDJSON:

  {"customer": "crm-000001", "key": "main", "fields": {"given_name": "Ada", "family_name": "Lovelace"}}

CSV has a header: customer, key (may be left out) and the names of fields. "customer" is the name that
your other system gave to the person; all lines with the same name belong to one customer, who is made
with a key of their own when there is none yet. It is kept sealed, and found again by a keyed hash.
"key" is the record's key, main when left out. FILE may be - for standard input.

Lines that cannot be taken are refused one by one, with line and reason, and never with a value. To go
on after an interruption, import the same file again: what is there already stays as it is. With
--report every line is written down with its outcome and the customer's id, as NDJSON.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			in, name := cmd.InOrStdin(), args[0]
			var total int64
			if name != "-" {
				file, err := os.Open(name)
				if err != nil {
					return err
				}
				defer file.Close()
				if total, err = countLines(file); err != nil {
					return err
				}
				in = file
			}
			if format == "" {
				if format = "ndjson"; strings.EqualFold(filepath.Ext(name), ".csv") {
					format = "csv"
				}
			}
			next, err := rowReader(in, format)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			i := importer{collection: collection, replace: replace, next: next, bar: newProgress(os.Stderr, "rows"), total: total,
				refusals: cmd.ErrOrStderr()}
			if report != "" {
				file, err := os.OpenFile(report, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return fmt.Errorf("report: %w", err)
				}
				out := bufio.NewWriter(file)
				defer func() { err = errors.Join(err, out.Flush(), file.Close()) }()
				i.report = json.NewEncoder(out)
			}
			if i.operator, err = s.operator(cmd); err != nil {
				return err
			}
			defer i.operator.Close()
			began := time.Now()
			err = i.run(cmd.Context())
			i.bar.clear()
			if err != nil {
				return fmt.Errorf("%s: stopped after %d rows; import it again to go on: %w", name, i.done, err)
			}
			took := time.Since(began)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), i.counts)
			} else {
				c := i.counts
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d rows in %v, %.0f a minute: %d created, %d updated, %d unchanged, %d refused\n",
					i.done, took.Round(time.Millisecond), float64(i.done)/max(took.Minutes(), 1e-9), c.Created, c.Updated, c.Unchanged, c.Refused)
			}
			if err == nil && i.counts.Refused > 0 {
				err = fmt.Errorf("%d of %d rows were refused", i.counts.Refused, i.done)
			}
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&collection, "collection", "", "the collection that the records belong to")
	cmd.Flags().StringVar(&format, "format", "", "ndjson or csv (default: by the name of the file)")
	cmd.Flags().BoolVar(&replace, "replace", false, "write over records that are there with other values")
	cmd.Flags().StringVar(&report, "report", "", "write what became of each line to this new file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the counts as JSON")
	_ = cmd.MarkFlagRequired("collection")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"ndjson", "csv"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func countLines(file *os.File) (lines int64, err error) {
	buffer := make([]byte, 1<<20)
	for {
		n, err := file.Read(buffer)
		lines += int64(bytes.Count(buffer[:n], []byte{'\n'}))
		if err == io.EOF {
			_, err = file.Seek(0, io.SeekStart)
			return lines, err
		}
		if err != nil {
			return 0, err
		}
	}
}

// importer carries rows to the vault, batch by batch.
type importer struct {
	operator   app.Operator
	collection string
	replace    bool
	next       func() (vault.ImportRow, error)
	report     *json.Encoder // may be nil
	refusals   io.Writer
	bar        *progress

	total, done int64
	counts      struct {
		Created   int64 `json:"created"`
		Updated   int64 `json:"updated"`
		Unchanged int64 `json:"unchanged"`
		Refused   int64 `json:"refused"`
	}
}

// maxShown is how many refusals are shown; the report has them all.
const maxShown = 20

// errRow is a line that is no row; what is after it can be read.
type errRow struct {
	line   int64
	detail string
}

func (e errRow) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.detail) }

func (i *importer) run(ctx context.Context) error {
	batch := make([]vault.ImportRow, 0, vault.MaxImport)
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		results, err := i.operator.Import(ctx, i.collection, batch, i.replace)
		if err != nil {
			return err
		}
		for _, r := range results {
			if err := i.tell(r); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	for {
		row, err := i.next()
		var bad errRow
		switch {
		case err == io.EOF:
			return flush()
		case errors.As(err, &bad):
			if err := i.tell(vault.ImportResult{Line: bad.line, Outcome: vault.Refused, Reason: "not-a-row", Detail: bad.detail}); err != nil {
				return err
			}
			continue
		case err != nil:
			return errors.Join(flush(), err)
		}
		if batch = append(batch, row); len(batch) == cap(batch) {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

func (i *importer) tell(r vault.ImportResult) error {
	i.done++
	switch r.Outcome {
	case vault.Created:
		i.counts.Created++
	case vault.Updated:
		i.counts.Updated++
	case vault.Unchanged:
		i.counts.Unchanged++
	default:
		i.counts.Refused++
		if i.counts.Refused <= maxShown {
			i.bar.clear()
			var fields []string
			for _, e := range r.Errors {
				fields = append(fields, e.Field+" "+e.Message)
			}
			fmt.Fprintf(i.refusals, "line %d: %s: %s\n", r.Line, r.Reason, strings.Join(append([]string{r.Detail}, fields...), " "))
			if i.counts.Refused == maxShown {
				fmt.Fprintln(i.refusals, "further refusals are not shown; --report has them all")
			}
		}
	}
	i.bar.update(i.done, max(i.total, i.done))
	if i.report == nil {
		return nil
	}
	if err := i.report.Encode(r); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// maxLine is how long a line may be: a record of 64 KiB, however it is escaped.
const maxLine = 512 << 10

// rowReader returns a function that returns the next row, an errRow for a line that is none, or io.EOF.
func rowReader(in io.Reader, format string) (func() (vault.ImportRow, error), error) {
	switch format {
	case "ndjson":
		return readNDJSON(in), nil
	case "csv":
		return readCSV(in)
	}
	return nil, fmt.Errorf("the format %q is not known: use ndjson or csv", format)
}

func readNDJSON(in io.Reader) func() (vault.ImportRow, error) {
	lines := bufio.NewReaderSize(in, 64<<10)
	var number int64
	return func() (vault.ImportRow, error) {
		for {
			line, err := readLine(lines)
			if err == io.EOF && len(line) == 0 {
				return vault.ImportRow{}, io.EOF
			}
			number++
			switch {
			case err == errLong:
				return vault.ImportRow{}, errRow{number, "the line is too long"}
			case err != nil && err != io.EOF:
				return vault.ImportRow{}, err
			}
			if number == 1 {
				line = bytes.TrimPrefix(line, []byte("\ufeff"))
			}
			if len(bytes.TrimSpace(line)) == 0 {
				continue
			}
			row, ok := parseRow(line)
			if !ok {
				return vault.ImportRow{}, errRow{number, `it is not {"customer": …, "key": …, "fields": {…}}`}
			}
			row.Line = number
			return row, nil
		}
	}
}

// parseRow reads one line of NDJSON.
func parseRow(line []byte) (vault.ImportRow, bool) {
	var row struct {
		Customer string          `json:"customer"`
		Key      string          `json:"key"`
		Fields   json.RawMessage `json:"fields"`
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if d.Decode(&row) != nil || d.Decode(&struct{}{}) != io.EOF || row.Fields == nil {
		return vault.ImportRow{}, false
	}
	return vault.ImportRow{External: row.Customer, Key: row.Key, Fields: row.Fields}, true
}

var errLong = errors.New("the line is too long")

// readLine returns the next line. Of one that is too long it returns errLong, and goes on after it.
func readLine(r *bufio.Reader) (line []byte, err error) {
	long := false
	for {
		part, err := r.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxLine; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case long && (err == nil || err == io.EOF):
			return nil, errLong
		}
		return line, err
	}
}

func readCSV(in io.Reader) (func() (vault.ImportRow, error), error) {
	text := bufio.NewReader(in)
	if mark, _ := text.Peek(3); string(mark) == "\ufeff" {
		_, _ = text.Discard(3)
	}
	r := csv.NewReader(text)
	r.ReuseRecord = true
	first, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("the header cannot be read: %w", csvError(err))
	}
	header := slices.Clone(first)
	customers := slices.Index(header, "customer")
	if customers < 0 {
		return nil, errors.New(`the header has no column "customer"`)
	}
	for i, name := range header {
		if slices.Index(header, name) != i {
			return nil, fmt.Errorf("the header has column %d twice", i+1)
		}
	}
	return func() (vault.ImportRow, error) {
		record, err := r.Read()
		var bad *csv.ParseError
		switch {
		case errors.As(err, &bad) && errors.Is(err, csv.ErrFieldCount):
			return vault.ImportRow{}, errRow{int64(bad.StartLine), "it has not as many columns as the header"}
		case errors.As(err, &bad):
			return vault.ImportRow{}, fmt.Errorf("line %d: the quotes do not match", bad.StartLine)
		case err != nil:
			return vault.ImportRow{}, err
		}
		line, _ := r.FieldPos(0)
		row := vault.ImportRow{Line: int64(line), Columns: make(map[string]string, len(record))}
		for i, text := range record {
			switch {
			case i == customers:
				row.External = text
			case header[i] == "key":
				row.Key = text
			default:
				row.Columns[header[i]] = text
			}
		}
		return row, nil
	}, nil
}

// csvError leaves out what might be a value.
func csvError(err error) error {
	var bad *csv.ParseError
	if errors.As(err, &bad) {
		return bad.Err
	}
	if err == io.EOF {
		return errors.New("the file is empty")
	}
	return err
}

func newVaultExport() *cobra.Command {
	var s settings
	var file string
	cmd := &cobra.Command{
		Use:   "export CUSTOMER",
		Short: "Export what is kept of a customer, whole, as JSON",
		Long: `Prints the customer's records, number, devices and sessions, and the names of their blobs, for the customer to take elsewhere. The trail
says who exported it, with the purpose portability.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := customerID(args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if file != "" {
				f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				defer func() {
					if err = errors.Join(err, f.Close()); err != nil {
						_ = os.Remove(file)
					}
				}()
				out = f
			}
			o, err := s.operator(cmd)
			if err != nil {
				return err
			}
			defer o.Close()
			export, err := o.Export(cmd.Context(), c)
			if err != nil {
				return err
			}
			return printJSON(out, export)
		},
	}
	s.place(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to this new file, which only its owner can read")
	return cmd
}
