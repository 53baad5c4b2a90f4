package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/backup"
	"strongroom/internal/secret"
)

func newBackup() *cobra.Command {
	cmd := &cobra.Command{Use: "backup", Short: "Copy everything to other media, restore it, and prove that it restores"}
	cmd.AddCommand(newBackupRun(), newBackupList(), newBackupShow(), newBackupVerify(), newBackupDrill(), newBackupRestore(),
		newBackupRunbook(), newBackupRecoveryKey(), newBackupPrune(), newBackupHold(), newBackupRelease(), newBackupApprove(), newBackupDelete())
	return cmd
}

// operate runs fn with the installation's operator, and prints what it returns as JSON when asked to.
func operate[T any](cmd *cobra.Command, s *settings, asJSON bool, fn func(o app.Operator) (T, error), show func(w io.Writer, result T) error) error {
	o, err := s.operator(cmd)
	if err != nil {
		return err
	}
	result, err := fn(o)
	if err = errors.Join(err, o.Close()); err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), result)
	}
	return show(cmd.OutOrStdout(), result)
}

func newBackupRun() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Take a snapshot now and store it in every repository",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bar := newProgress(os.Stderr, "rows")
			return operate(cmd, &s, asJSON, func(o app.Operator) (backup.Snapshot, error) {
				defer bar.clear()
				return o.BackupRun(cmd.Context(), bar.update)
			}, func(w io.Writer, r backup.Snapshot) error {
				fmt.Fprintf(w, "✓ %s: %d rows, %s, %s of it new, in %v\n", r.ID, r.Rows, size(r.Bytes), size(r.NewBytes), r.Took.Round(time.Millisecond))
				return printCopies(w, r.Copies)
			})
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printCopies(w io.Writer, copies []backup.Copy) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range copies {
		mark, why := "✓", ""
		if c.Error != "" {
			mark, why = "✗", printable(c.Error)
		}
		fmt.Fprintf(out, "  %s %s\t%s\t%s\t%s\t%s\n", mark, c.Part, c.Repository, c.Medium, c.Region, why)
	}
	return out.Flush()
}

// size says how much it is in the unit that fits.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f kB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
}

func newBackupList() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots that the repositories hold, and when the next one comes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, &s, asJSON, func(o app.Operator) (backup.Listing, error) { return o.BackupList(cmd.Context()) }, printListing)
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printListing(w io.Writer, l backup.Listing) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(l.Snapshots) > 0 {
		fmt.Fprintln(out, "SNAPSHOT\tTAKEN\tCLASS\tROWS\tSIZE\tNEW\tTOOK\tDATA COPIES\tKEPT")
	} else {
		fmt.Fprintln(out, "There is no snapshot yet: strongroom backup run")
	}
	for _, s := range l.Snapshots {
		var on []string
		for _, c := range s.Copies {
			if c.Part == backup.Data && c.Error == "" {
				on = append(on, c.Repository)
			}
		}
		kept := "✓"
		if !s.Kept {
			kept = "✗"
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%s\t%s\t%v\t%s\t%s\n", s.ID, s.Taken.Local().Format("2006-01-02 15:04:05"), s.Class, s.Rows, size(s.Bytes),
			size(s.NewBytes), s.Took.Round(time.Millisecond), strings.Join(on, " "), kept)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for _, u := range l.Unreachable {
		fmt.Fprintln(w, "✗", printable(u))
	}
	if !l.Recoverable {
		fmt.Fprintln(w, "✗ no recovery key is named: without the root key nothing could be read (strongroom backup recovery-key)")
	}
	if d := l.LastDrill; d != nil {
		result := "passed"
		if len(d.Failed) > 0 {
			result = "FAILED"
		}
		fmt.Fprintf(w, "last drill  %s, %s: back in service after %v\n", d.Started.Local().Format("2006-01-02 15:04"), result, d.RTO.Round(time.Millisecond))
	}
	if !l.Next.At.IsZero() {
		about := ""
		if l.Next.Took > 0 {
			about = fmt.Sprintf(", about %v and %s", l.Next.Took.Round(time.Millisecond), size(l.Next.NewBytes))
		}
		fmt.Fprintf(w, "next        %s (%s)%s, while a server runs\n", l.Next.At.Local().Format("2006-01-02 15:04"), l.Next.Class, about)
	}
	return nil
}

func newBackupShow() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [SNAPSHOT]",
		Short: "Show one snapshot, the newest when none is named: tables, hashes, copies, keys that it needs",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operate(cmd, &s, asJSON, func(o app.Operator) (backup.Shown, error) {
				return o.BackupShow(cmd.Context(), first(args))
			}, printShown)
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func printShown(w io.Writer, s backup.Shown) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "snapshot\t%s (%s)\n", s.ID, s.Class)
	fmt.Fprintf(out, "taken\t%s in %v\n", s.Taken.Local().Format(time.RFC3339), s.Took.Round(time.Millisecond))
	fmt.Fprintf(out, "of\t%s, environment %s, %s, schema %d, Strongroom %s\n", s.Installation, s.Environment, s.Engine, s.Schema, s.Program)
	if s.Label != "" || s.Jurisdiction != "" {
		fmt.Fprintf(out, "label\t%s, jurisdiction %s\n", printable(s.Label), printable(s.Jurisdiction))
	}
	fmt.Fprintf(out, "size\t%d rows, %s, %s new\n", s.Rows, size(s.Bytes), size(s.NewBytes))
	fmt.Fprintf(out, "trail\t%d events, root %s\n", s.TreeSize, s.TreeRoot)
	fmt.Fprintf(out, "keys\ta restore takes those of %s\n", s.KeysTaken.Local().Format(time.RFC3339))
	var needs []string
	for name, versions := range s.Needs {
		needs = append(needs, fmt.Sprintf("%s %s", name, strings.Trim(fmt.Sprint(versions), "[]")))
	}
	slices.Sort(needs)
	fmt.Fprintf(out, "needs\t%s\n", strings.Join(needs, ", "))
	if err := out.Flush(); err != nil {
		return err
	}
	if err := printCopies(w, s.Copies); err != nil {
		return err
	}
	fmt.Fprintln(out, "TABLE\tROWS\tSHA-256")
	for _, t := range s.Tables {
		fmt.Fprintf(out, "%s\t%d\t%s\n", t.Name, t.Rows, t.Hash)
	}
	return out.Flush()
}

func newBackupVerify() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [SNAPSHOT]",
		Short: "Read every object of a snapshot from every repository and check it to the last byte",
		Long: fmt.Sprintf(`Reads every object that the snapshot (the newest when none is named) and the newest copy of the keys
need, from every repository, and checks encryption, authentication and content. What is damaged in one is
mended from another. Exit code %d when a copy stays damaged.`, exitFindings),
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(os.Stderr, "objects")
			damaged := false
			err := operate(cmd, &s, asJSON, func(o app.Operator) (backup.Verification, error) {
				defer bar.clear()
				v, err := o.BackupVerify(cmd.Context(), first(args), bar.update)
				damaged = !v.Whole()
				return v, err
			}, func(w io.Writer, v backup.Verification) error {
				if v.Whole() {
					fmt.Fprintf(w, "✓ %s: %d objects, %s, all of them whole\n", v.Snapshot, v.Objects, size(v.Bytes))
				} else {
					fmt.Fprintf(w, "✗ %s: copies are damaged or missing, of %d objects that were read\n", v.Snapshot, v.Objects)
				}
				for _, f := range v.Faults {
					what := "✗"
					if f.Mended {
						what = "mended"
					}
					fmt.Fprintf(w, "  %s %s %s: %s\n", what, f.Repository, f.Object, printable(f.Error))
				}
				return nil
			})
			if err == nil && damaged {
				err = exitError(exitFindings)
			}
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newBackupDrill() *cobra.Command {
	var s settings
	var asJSON bool
	var certificate string
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Restore the newest snapshot for practice, check it, and sign a certificate of it",
		Long: `Restores the newest snapshot into a scratch database (of PostgreSQL when backup.drill_database names
one), checks every table's rows and hash, the trail, and a sample of customers' records, measures how
long it took until it could serve and how old the snapshot was, signs a certificate (in-toto, DSSE), and
takes the scratch database away.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bar := newProgress(os.Stderr, "rows")
			return operate(cmd, &s, asJSON, func(o app.Operator) (backup.Drill, error) {
				defer bar.clear()
				d, err := o.BackupDrill(cmd.Context(), bar.update)
				if err == nil && certificate != "" {
					err = os.WriteFile(certificate, []byte(d.Certificate+"\n"), 0o600)
				}
				return d, err
			}, printDrill)
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&certificate, "certificate", "", "write the certificate to this file")
	return cmd
}

func printDrill(w io.Writer, d backup.Drill) error {
	fmt.Fprintf(w, "✓ %s restores: %d rows of %d tables, from %s into %s\n", d.Snapshot, d.Rows, d.Tables, d.From, d.Into)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, check := range d.Passed {
		detail := ""
		switch check {
		case backup.CheckTrail:
			detail = fmt.Sprintf("%d events", d.Events)
		case backup.CheckOpen:
			detail = fmt.Sprintf("%d customers", d.Sampled)
		}
		fmt.Fprintf(out, "  ✓ %s\t%s\n", check, detail)
	}
	fmt.Fprintf(out, "  back in service after\t%v\n", d.RTO.Round(time.Millisecond))
	fmt.Fprintf(out, "  age of the snapshot\t%v\n", d.RPO.Round(time.Second))
	if err := out.Flush(); err != nil {
		return err
	}
	var envelope struct {
		Signatures []struct {
			KeyID string `json:"keyid"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal([]byte(d.Certificate), &envelope); err != nil || len(envelope.Signatures) == 0 {
		return errors.New("the certificate has no signature")
	}
	_, err := fmt.Fprintf(w, "certificate %s, signed by %s; print it with --json, or write it with --certificate FILE\n", d.ID, envelope.Signatures[0].KeyID)
	return err
}

func newBackupRestore() *cobra.Command {
	var s settings
	var ask app.RestoreRequest
	var asJSON bool
	var customer, recovery, endpoint, region string
	var repositories, manifestKeys []string
	cmd := &cobra.Command{
		Use:   "restore --to FOLDER|postgres://…",
		Short: "Restore a snapshot: the whole, the trail alone, or one customer; or everything after a loss",
		Long: `Restores the newest snapshot, or the one that --snapshot names, into a folder (a complete installation)
or an empty PostgreSQL database. The keys are always the newest there are, and whoever was erased since the
snapshot is erased again before the database may serve. A restore that was cut off goes on when the same
command is given again.

With --customer it writes what the snapshot has of one customer into the new folder that --to names: customer.json
with records, number, devices and sessions, each blob as a file, and for a customer who was imported the collections
as "vault import" takes them. The live database is not touched.

With --recovery-key and --repository (once for each, data and keys) it needs nothing else: it makes a new
root key in the folder (--to, or --data when --to is PostgreSQL). With --manifest-key, from the recovery guide, or
lines "# manifest key: KEY" in the recovery key's file, it refuses copies that these keys did not sign. Credentials for S3 are then taken from
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ask.To == "" {
				return errors.New("--to is missing: name a folder, or postgres://…")
			}
			if !strings.Contains(ask.To, "://") { // the server that runs may have another working directory
				whole, err := filepath.Abs(ask.To)
				if err != nil {
					return err
				}
				ask.To = whole
			}
			if customer != "" {
				return restoreCustomer(cmd, &s, ask, customer, asJSON)
			}
			bar := newProgress(os.Stderr, "rows")
			if recovery == "" {
				return operate(cmd, &s, asJSON, func(o app.Operator) (app.RestoreReport, error) {
					defer bar.clear()
					return o.BackupRestore(cmd.Context(), ask, bar.update)
				}, printRestored)
			}
			c := app.RecoverRequest{RestoreRequest: ask, Data: ask.To, KeyFile: recovery, ManifestKeys: manifestKeys}
			if strings.Contains(ask.To, "://") {
				if !cmd.Flags().Changed("data") {
					return errors.New("--data is missing: name the folder for the settings and the new root key")
				}
				c.Data = s.data
			}
			for i, url := range repositories {
				o, err := repositoryOf(url, i, endpoint, region)
				if err != nil {
					return err
				}
				c.Repositories = append(c.Repositories, o)
			}
			if len(c.Repositories) < 2 {
				return errors.New("--repository is missing: name one for the data and one for the keys")
			}
			log, err := logger(logQuietly)
			if err != nil {
				return err
			}
			report, err := app.Recover(cmd.Context(), c, log, bar.update)
			bar.clear()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), report)
			}
			if err := printRestored(cmd.OutOrStdout(), report); err != nil {
				return err
			}
			printSigner(cmd.OutOrStdout(), report)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "A new root key and its passphrase are in %s: move the passphrase to where secrets live, and keep copies apart.\n", c.Data)
			return err
		},
	}
	s.place(cmd)
	f := cmd.Flags()
	f.StringVar(&ask.To, "to", "", "folder to make, or postgres://… to fill")
	f.StringVar(&ask.Snapshot, "snapshot", "", "which snapshot (default the newest)")
	f.StringVar(&ask.Only, "only", "", "audit: the trail alone")
	f.StringVar(&customer, "customer", "", "what is kept of one customer alone")
	f.BoolVar(&ask.Force, "force", false, "replace the database that is there")
	f.StringVar(&ask.Environment, "environment", "", "with --force: the environment, typed once more")
	f.StringVar(&recovery, "recovery-key", "", "file of the recovery key, when the root key is lost")
	f.StringArrayVar(&repositories, "repository", nil, "with --recovery-key: folder, file:///… or s3://bucket/prefix")
	f.StringArrayVar(&manifestKeys, "manifest-key", nil, "with --recovery-key: public key that must have signed the copies, from the recovery guide")
	f.StringVar(&endpoint, "s3-endpoint", "", "with --recovery-key: address of an S3 server that is not Amazon's")
	f.StringVar(&region, "s3-region", "eu-central-1", "with --recovery-key: region of the buckets")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printSigner says what is known of who made the copies.
func printSigner(w io.Writer, r app.RestoreReport) {
	if r.Pinned {
		fmt.Fprintf(w, "✓ The manifests are signed by %s, as you asked.\n", r.SignedBy)
		return
	}
	fmt.Fprintf(w, `✗ NOT CHECKED: who made these copies. The manifests are signed by %s, a key that came with them.
  Compare it with the printed recovery guide; with --manifest-key another one is refused.
`, r.SignedBy)
}

func repositoryOf(url string, i int, endpoint, region string) (backup.RepositoryOptions, error) {
	o := backup.RepositoryOptions{Name: fmt.Sprintf("repository-%d", i+1), Region: region, Endpoint: endpoint, PathStyle: endpoint != "",
		AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: secret.FromString(os.Getenv("AWS_SECRET_ACCESS_KEY"))}
	var err error
	o.URL, err = app.RepositoryURL(url)
	return o, err
}

func printRestored(w io.Writer, r app.RestoreReport) error {
	fmt.Fprintf(w, "✓ %s of %s restored into %s: %d rows of %d tables in %v, every table checked\n",
		r.Snapshot, r.Taken.Local().Format("2006-01-02 15:04:05"), r.To, r.Rows, r.Tables, r.Took.Round(time.Millisecond))
	fmt.Fprintf(w, "  the keys are those of %s\n", r.KeysTaken.Local().Format("2006-01-02 15:04:05"))
	if len(r.Passed) > 0 {
		fmt.Fprintf(w, "✗ Newer snapshots could not be taken, because they do not open or there are no keys as new: %s\n", printable(strings.Join(r.Passed, ", ")))
	}
	if r.Erased > 0 {
		fmt.Fprintf(w, "  %d customers who were erased since the snapshot are erased here too\n", r.Erased)
	}
	if r.Replaced != "" {
		_, err := fmt.Fprintf(w, "  the database that was there is kept as %s: remove it when nobody needs it\nNext: strongroom audit verify --data %s\n", r.Replaced, r.To)
		return err
	}
	if strings.Contains(r.To, "://") {
		_, err := fmt.Fprintf(w, `  To serve from it, name it in database.url of an installation with the same root key. A data folder that has seen
  more of the trail is told once: strongroom audit accept-restore --checkpoint %d:%s
`, r.TreeSize, r.TreeRoot)
		return err
	}
	_, err := fmt.Fprintf(w, `  It has no backup repositories, on purpose: two installations never share them. Name its own.
Next: strongroom audit verify --data %[1]s, then strongroom serve --data %[1]s
`, r.To)
	return err
}

func restoreCustomer(cmd *cobra.Command, s *settings, ask app.RestoreRequest, text string, asJSON bool) error {
	c, err := customerID(text)
	if err != nil {
		return err
	}
	bar := newProgress(os.Stderr, "rows")
	return operate(cmd, s, asJSON, func(o app.Operator) (app.CustomerReport, error) {
		defer bar.clear()
		return o.BackupCustomer(cmd.Context(), ask.Snapshot, c, ask.To, bar.update)
	}, func(w io.Writer, r app.CustomerReport) error {
		_, err := fmt.Fprintf(w, `✓ %s as of %s: %d records and %d blobs (%s) are in %s
  customer.json holds the records, number, devices and sessions; blobs are files. The live database was not touched.
`, r.Customer, r.Taken.Local().Format("2006-01-02 15:04:05"), r.Records, r.Blobs, size(r.Bytes), r.To)
		return err
	})
}

func newBackupRunbook() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "runbook",
		Short: "Print the recovery guide of this installation: names, places, last measured times",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, &s, asJSON, func(o app.Operator) (string, error) { return o.BackupRunbook(cmd.Context()) }, func(w io.Writer, text string) error {
				_, err := io.WriteString(w, text)
				return err
			})
		},
	}
	s.place(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newBackupRecoveryKey() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "recovery-key --out FILE",
		Short: "Make a recovery key, offline, and print its recipient for backup.recipients",
		Long: `Makes a key of age that quantum computers do not open either (ML-KEM-768 with X25519). Run it on a machine
without a network, keep the file apart from everything else, and put only the recipient into the settings.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return errors.New("--out is missing: name the file to write the key to")
			}
			recipient, err := app.MakeRecoveryKey(out)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"file": out, "recipient": recipient})
			}
			fmt.Fprintf(os.Stderr, "The key is in %s: keep it offline, in two places. This is its recipient, for backup.recipients:\n", out)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), recipient)
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write the key to; it must not exist")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
