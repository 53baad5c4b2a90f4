package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/config"
)

func newServe() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long:  "Runs the server with the settings of the data folder. `strongroom init` makes one.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, s.readyFile, func(app.URLs) {})
		},
	}
	s.place(cmd)
	s.doors(cmd)
	return cmd
}

func newDev() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Try Strongroom on this machine: one command, nothing to set up",
		Long: `Makes an installation in the data folder when there is none, with a development certificate
authority and an inbox in place of SMS, and runs it. Everything in it is encrypted as it would be in
production, but the passphrase lies beside the key: for trying out, never for real customers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := os.Stat(s.path()); errors.Is(err, fs.ErrNotExist) {
				fresh := config.ForDev(s.data)
				fresh.Database.URL = s.database
				fresh.Log = config.Log{Level: "warn", Format: "text"}
				if err := app.Init(cmd.Context(), fresh); err != nil {
					return err
				}
			} else if err != nil {
				return err
			}
			c, err := s.load()
			if err != nil {
				return err
			}
			if c.Environment != config.Dev {
				return fmt.Errorf("%s is of environment %s: run it with `strongroom serve`", s.path(), c.Environment)
			}
			return serve(cmd.Context(), c, s.readyFile, func(u app.URLs) { welcome(cmd.OutOrStdout(), s.data, u) })
		},
	}
	s.place(cmd)
	s.doors(cmd)
	return cmd
}

func newInit() *cobra.Command {
	var s settings
	var environment string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a data folder: settings, root key, encrypted database",
		Long: `Makes a data folder with every setting explained in ` + config.FileName + `, a root key sealed by a
fresh passphrase, and an empty encrypted database. Keep a copy of the root key and of the passphrase
apart from each other and from the data: without them the data cannot be read by anybody.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := config.Default()
			c.Environment, c.Data, c.Database.URL = environment, s.data, s.database
			c.RootKey.Passphrase = config.Secret{File: "root.passphrase"}
			if err := app.Init(cmd.Context(), c); err != nil {
				return err
			}
			backups := `Copies are made nowhere yet: "strongroom backup recovery-key --out FILE", then name repositories in
the settings under backup.`
			if environment == config.Dev {
				backups = fmt.Sprintf("Backups go to %[1]s/backups; what opens them when all else is lost is %[1]s/recovery.key: move it away.", s.data)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), `Made an installation for environment %s in %s.

  %-18s every setting, explained: certificates and an SMS gateway are yours to fill in
  %-18s the root key, sealed; keep a copy apart from the data
  %-18s its passphrase; move it to where your secrets live and say so in root_key.passphrase

%s
Next: edit the settings, run "strongroom config check --data %s", then "strongroom serve --data %s".
`, environment, s.data, config.FileName, "root.key", "root.passphrase", backups, s.data, s.data)
			return err
		},
	}
	s.place(cmd)
	cmd.Flags().StringVar(&environment, "environment", config.Live, "dev, uat or live; it can never change")
	return cmd
}

// serve runs the server until the context ends, then lets it finish what it has begun.
func serve(ctx context.Context, c config.Config, readyFile string, ready func(app.URLs)) error {
	log, err := logger(c.Log)
	if err != nil {
		return err
	}
	server, err := app.Serve(ctx, c, app.Options{Log: log, Version: version})
	if err != nil {
		return err
	}
	files := []string{filepath.Join(c.Data, app.ReadyFile)}
	if readyFile != "" && readyFile != files[0] {
		files = append(files, readyFile)
	}
	for _, file := range files {
		if err = writeReady(file, server.URLs()); err != nil {
			break
		}
	}
	if err == nil {
		ready(server.URLs())
		err = wait(ctx, server, log)
	}
	for _, file := range files {
		_ = os.Remove(file) // while the folder is still locked: it may be the next server's afterwards
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Listeners.Drain+30*time.Second)
	defer cancel()
	return errors.Join(err, server.Close(stop))
}

// wait returns when the context ends or a listener fails. SIGHUP reads the certificates again.
func wait(ctx context.Context, server *app.Server, log *slog.Logger) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-server.Failed():
			return err
		case <-hangup:
			if err := server.Reload(); err != nil {
				log.Error("certificates not read again; the old ones stay in use", "error", err)
			}
		}
	}
}

// writeReady writes the file in one step, so that a script that waits for it never reads half.
func writeReady(path string, urls app.URLs) error {
	b, err := json.MarshalIndent(urls, "", "  ")
	if err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("ready file: %w", err)
	}
	return os.Rename(temporary, path)
}

func welcome(w io.Writer, data string, u app.URLs) {
	flag := ""
	if data != defaultData {
		flag = " --data " + data
	}
	fmt.Fprintf(w, `Strongroom is ready. Stop it with Ctrl-C; the data stays in %[1]s.

  app      %-26[2]s customers: registration, login, records
  service  %-26[3]s your back-end services, with a certificate
  admin    %-26[4]s staff, from this machine only
  ops      %-26[5]s /healthz /readyz /metrics

See it in a browser:
  %[2]s/pocket/    a sample app: two phones and their text messages
  %[2]s/dev/inbox  the one-time codes that would go to phones
Certificates are signed by %[6]s, which
browsers do not know: go on past their warning.
Backups go to %[1]s/backups; what opens them when all else is lost is %[1]s/recovery.key: move it away.

Try next, in a second terminal:
  bin/strongroom demo%[7]s            a customer's whole journey, step by step
  bin/strongroom audit tail%[7]s      who did what
  bin/strongroom audit verify%[7]s    recompute the trail
  curl --cacert %[6]s %[2]s/openapi.json
  docs/vault.md has requests of a service to paste, with the certificate in tls/client.pem
`, data, u.App, u.Service, u.Admin, u.Ops, u.CA, flag)
}
